"""AffectGPT: multimodal large language models for emotion understanding (ICML 2025)."""

__version__ = "0.1.0"


def __getattr__(name: str):
    # Predictor pulls in torch; importing the package must not.
    if name == "Predictor":
        from affectgpt.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'affectgpt' has no attribute {name!r}")


__all__ = ["Predictor", "__version__"]
