"""Train open vision-language models, on your own machine, to operate user interfaces."""
__version__ = "0.1.0"

import importlib

_WHERE = {  # public name -> module; a module is loaded when its name is first used, so `import vlm_agent` stays light
    "ActionDecoder": "decoder", "ActionDecodeError": "decoder",
    "VLMWrapper": "wrapper", "load_model": "wrapper",
    "make_env": "server", "connect": "server", "serve": "server",
    "TaskRunner": "runner", "ModelPolicy": "runner",
    "RejectionSampling": "rejection_sampling",
    "Trainer": "training", "train_with_orchestration": "training",
    "predict_memory": "memory", "measure_memory": "memory",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name):
    if name not in _WHERE: raise AttributeError(f"module 'vlm_agent' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__(): return sorted({*globals(), *_WHERE})
