"""Models as files: descriptions, model directories, others' layouts. Knows no LightningModule."""
