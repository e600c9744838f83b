"""AffectGPT: multimodal large language models for emotion understanding (ICML 2025)."""

__version__ = "0.2.0"

# Name → the module that has it. They pull in torch; importing the package must not.
_LAZY = {
    "AffectGPTConfig": "affectgpt.modeling.configuration_affectgpt",
    "AffectGPTForConditionalGeneration": "affectgpt.modeling.modeling_affectgpt",
    "AffectGPTProcessor": "affectgpt.processing.processor",
    "EmotionDataset": "affectgpt.datasets.base",
    "GenerationSession": "affectgpt.inference.session",
    "Predictor": "affectgpt.inference.predictor",
    "load_config": "affectgpt.config.load",
    "open_dataset": "affectgpt.datasets.base",
    "register": "affectgpt.inference.hub",
}


def __getattr__(name: str):
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'affectgpt' has no attribute {name!r}")


__all__ = ["__version__", *sorted(_LAZY)]
