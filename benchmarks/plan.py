"""What the full run needs: time by GPUs and utilisation, memory a GPU by strategy, storage of latents.

python benchmarks/plan.py
python benchmarks/plan.py --gpus 8 64 --peak 312e12 --mfu 0.35 --memory 40e9      A100s of 40 GB
"""

from __future__ import annotations

import argparse

WIDTH, DEPTH, PARAMETERS = 1536, 31, 952_504_912
STAGES = {  # pixels a side, steps, global batch, pairs in the data set: the paper, section 5.1
    "1": (256, 250_000, 11_264, 2.32e9),
    "2": (512, 200_000, 2_112, 170e6),
    "3": (512, 220_000, 2_112, 193e6),
}


def num_tokens(size: int) -> int:
    """Two times, 77 text states, one CLIP vector, and patches of 16 pixels a side."""
    return 2 + 77 + 1 + (size // 16) ** 2


def training_flops(tokens: int) -> float:
    """Of one sample, forward and backward: 6 a parameter and token, and the two products of attention."""
    return 6 * PARAMETERS * tokens + 12 * DEPTH * WIDTH * tokens**2


def activations(tokens: int, *, checkpointing: bool) -> float:
    """Bytes kept for the backward pass of one sample in bf16: 34 a number of each block (Korthikanti et al. 2022,
    arXiv 2205.05198, equation 2, without the attention matrix, which is never whole); with checkpointing the blocks'
    inputs, and one block's worth.
    """
    block = 34 * tokens * WIDTH
    return DEPTH * 2 * tokens * WIDTH + block if checkpointing else DEPTH * block


def stored_bytes(size: int) -> int:
    """Of one sample in float16: mean and log-variance of the autoencoder's latent, CLIP's feature, text states."""
    return 2 * (8 * (size // 8) ** 2 + 512 + 77 * 64)


def state_bytes(shards: int) -> float:
    """On one GPU, in float32: weights, gradients, AdamW's two moments, the average."""
    return 5 * 4 * PARAMETERS / shards


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 88], help="numbers of GPUs")
    parser.add_argument("--peak", type=float, default=989e12, help="bf16 FLOP/s of one (H100 989e12, A100 312e12)")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that training reaches: an assumption")
    parser.add_argument("--memory", type=float, default=80e9, help="bytes of one GPU")
    options = parser.parse_args()

    print(f"{PARAMETERS:,} parameters; {options.peak / 1e12:.0f} TFLOP/s a GPU, {options.mfu:.0%} of it used\n")
    print("| stage | pixels | tokens | TFLOP a sample | samples | samples/s a GPU |", end="")
    print("".join(f" days on {n} |" for n in options.gpus), "latents |")
    print("|---" * (7 + len(options.gpus)) + "|")
    totals = dict.fromkeys(options.gpus, 0.0)
    for name, (size, steps, batch, pairs) in STAGES.items():
        flops = training_flops(num_tokens(size))
        rate = options.peak * options.mfu / flops
        days = {n: steps * batch / rate / n / 86400 for n in options.gpus}
        totals = {n: totals[n] + days[n] for n in options.gpus}
        row = f"| {name} | {size} | {num_tokens(size)} | {flops / 1e12:.2f} | {steps * batch:.3g} | {rate:.0f} |"
        print(row + "".join(f" {days[n]:.1f} |" for n in options.gpus), f"{pairs * stored_bytes(size) / 1e12:.1f} TB |")
    print("| all | | | | | |" + "".join(f" {totals[n]:.1f} |" for n in options.gpus), "|")

    print("\n| strategy | weights, gradients, AdamW, average | samples at 512 px that fit | with checkpointing |")
    print("|---|---|---|---|")
    for label, shards in [("one GPU or DDP", 1), *[(f"FSDP2 over {n}", n) for n in options.gpus]]:
        room = options.memory * 0.9 - state_bytes(shards)
        fits = [int(max(0, room) // activations(num_tokens(512), checkpointing=on)) for on in (False, True)]
        print(f"| {label} | {state_bytes(shards) / 1e9:.1f} GB | {fits[0]} | {fits[1]} |")


if __name__ == "__main__":
    main()
