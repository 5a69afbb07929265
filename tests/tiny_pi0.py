"""flywheel, where pi0 has some ten thousand random weights and its tokenizer lies in a cache of the hub's form:

    python tests/tiny_pi0.py CACHE pretrain policy=lerobot policy.type=pi0 ...

Its sizes are no settings of LeRobot's (the smallest has a billion weights), and its tokenizer is named in its code."""

import os
import sys
from pathlib import Path

TOKENIZER = "google/paligemma-3b-pt-224"


def cached(cache: Path) -> None:
    """The tokenizer, as the hub's own client would have left it."""
    import tiny_vla

    place = cache / "hub" / f"models--{TOKENIZER.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text("0")
    tiny_vla.tokenizer().save_pretrained(place / "snapshots" / "0")
    (place / "snapshots" / "0" / "config.json").write_text('{"model_type": "paligemma"}')


def shrink() -> None:
    """Make LeRobot build pi0 small: width 8, two layers, and one of its eye."""
    import transformers as hf
    from lerobot.policies.pi0 import modeling_pi0

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14, "image_size": 28}

    class Eye(hf.SiglipVisionConfig):
        def __setattr__(self, key, value):  # LeRobot sets these two, whatever the configuration says
            super().__setattr__(key, {"projection_dim": 8, "intermediate_size": 16}.get(key, value))

    class Sees(hf.SiglipVisionModel):
        config_class = Eye

    def paligemma():
        made = hf.PaliGemmaConfig(vision_config=small)
        made.vision_config = Eye(**small, vision_use_head=False)
        return made

    hf.AutoModel.register(Eye, Sees)
    modeling_pi0.CONFIG_MAPPING = {"paligemma": paligemma, "gemma": hf.GemmaConfig}
    modeling_pi0.get_gemma_config = lambda variant: modeling_pi0.GemmaConfig(8, 2, 16, 8, 1, 8)


if __name__ == "__main__":
    cache, words = Path(sys.argv[1]), sys.argv[2:]
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)}
    cached(cache)
    shrink()
    from flywheel.cli.app import main

    sys.argv = ["flywheel", *words]
    sys.exit(main())
