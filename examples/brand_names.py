"""Train on a short list of sixty brand names, and print only generated names that are not in it.

    python examples/brand_names.py

With so few names a model soon overfits. So the model is small and uses dropout, and the names are generated
with the weights that had the lowest validation loss.
"""

import tempfile
from pathlib import Path

from flashmore import GenerateOptions, Run, TrainConfig, generate, train

BRANDS = """
    Alvora Arvento Belvine Brightly Calvera Cordana Corvia Davento Delmara Dovira Elvanto Emberly Envira
    Evolta Falmora Fentora Finvera Floranta Galdera Glenvia Halvora Havenly Indora Inventa Jolvera Juventa
    Kalmira Kelvora Kindora Larvento Lenvia Lumina Luvanta Malvira Merivo Mindora Movanta Nalvera Nordana
    Novira Olvanta Orvella Palmora Penvira Quantiva Quelora Ravento Rivanta Salvora Solvera Tavira Tindora
    Ulvanta Valmora Venturo Verdana Vindora Welvora Yelvanta Zentora
"""


def main() -> None:
    """Train for a few seconds, then print ten new names, the most likely first."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "brands.txt")
        file.write_text("\n".join(BRANDS.split()), encoding="utf-8")
        config = TrainConfig(
            file,
            n_layer=2,
            n_embd=32,
            dropout=0.1,
            max_steps=200,
            eval_interval=25,
            warmup_steps=20,
            device="cpu",
        )
        result = train(config, Path(folder, "run"))
        made = generate(
            Run.open(result.run), GenerateOptions(count=10, new_only=True, temperature=0.7, seed=1)
        )
    for name in sorted(made.names, key=lambda name: name.log_prob, reverse=True):
        print(f"{name.text:12}  log-probability {name.log_prob:6.2f}")


if __name__ == "__main__":
    main()
