"""Model sizes of the benchmarks: architectures for random weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Numbers of an architecture."""

    llm: dict
    vision: dict
    projection: int
    speech: dict


SIZES = {
    "tiny": Size(  # to try the benchmark itself
        llm={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "vocab_size": 200},
        vision={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                "patch_size": 56, "image_size": 224},
        projection=24,
        speech={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
                "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
    ),
    "medium": Size(
        # The published measurement tells no feed-forward size; with this one the LLM has its published share.
        llm={"hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 8,
             "num_key_value_heads": 8, "vocab_size": 1600},
        vision={"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6,
                "patch_size": 16, "image_size": 224},
        projection=384,
        # With the convolutions of HubertConfig's defaults: layer norms in each, as the large model has them, take so
        # much longer in backward that the published stages' shares cannot come out.
        speech={"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6},
    ),
    "real": Size(
        llm={"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
             "num_key_value_heads": 4, "vocab_size": 152064},
        vision={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                "patch_size": 14, "image_size": 224},
        projection=768,
        speech={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    ),
}  # fmt: skip
