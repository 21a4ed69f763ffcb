"""The page of ``unidiffuser demo``: forms that are calls of the commands, carried out as the commands do."""
