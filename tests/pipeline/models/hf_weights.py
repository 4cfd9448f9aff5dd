"""The same weights under transformers' names: an independent implementation to compare with."""

import re
from typing import Any

import torch

_SWIN = (
    (r"^backbone\.0\.patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^backbone\.0\.patch_embed\.norm\.", "embeddings.norm."),
    (r"^backbone\.0\.layers\.", "encoder.layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.relative_position_bias_table", ".attention.relative_position_bias.relative_position_bias_table"),
    (r"\.attn\.proj\.", ".attention.o_proj."),
)
_ENCODER = (
    (r"^transformer\.encoder\.text_layers\.(\d+)\.", r"model.encoder.layers.\1.text_enhancer_layer."),
    (r"^transformer\.encoder\.fusion_layers\.(\d+)\.", r"model.encoder.layers.\1.fusion_layer."),
    (r"^transformer\.encoder\.layers\.(\d+)\.", r"model.encoder.layers.\1.deformable_layer."),
    (r"(text_enhancer_layer)\.linear(\d)", r"\1.fc\2"),
    (r"(text_enhancer_layer)\.norm1", r"\1.layer_norm_before"),
    (r"(text_enhancer_layer)\.norm2", r"\1.layer_norm_after"),
    (r"gamma_v", "vision_param"),
    (r"gamma_l", "text_param"),
    (r"layer_norm_v\b", "layer_norm_vision"),
    (r"layer_norm_l\b", "layer_norm_text"),
    (r"attn\.v_proj", "attn.vision_proj"),
    (r"attn\.l_proj", "attn.text_proj"),
    (r"attn\.values_v_proj", "attn.values_vision_proj"),
    (r"attn\.values_l_proj", "attn.values_text_proj"),
    (r"attn\.out_v_proj", "attn.out_vision_proj"),
    (r"attn\.out_l_proj", "attn.out_text_proj"),
    (r"(deformable_layer)\.norm1", r"\1.self_attn_layer_norm"),
    (r"(deformable_layer)\.norm2", r"\1.final_layer_norm"),
    (r"(deformable_layer)\.linear(\d)", r"\1.fc\2"),
)
_DECODER = (
    (r"^transformer\.decoder\.layers\.", "model.decoder.layers."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.ca_text\.", ".encoder_attn_text."),
    (r"\.catext_norm\.", ".encoder_attn_text_layer_norm."),
    (r"\.norm1\.", ".encoder_attn_layer_norm."),
    (r"\.norm2\.", ".self_attn_layer_norm."),
    (r"\.norm3\.", ".final_layer_norm."),
    (r"\.linear(\d)\.", r".fc\1."),
)
_REST = (
    (r"^bert\.", "model.text_backbone."),
    (r"^input_proj\.", "model.input_proj_vision."),
    (r"^feat_map\.", "model.text_projection."),
    (r"^transformer\.decoder\.ref_point_head\.", "model.decoder.reference_points_head."),
    (r"^transformer\.decoder\.bbox_embed\.", "model.decoder.bbox_embed."),
    (r"^transformer\.decoder\.norm\.", "model.decoder.layer_norm."),
    (r"^transformer\.enc_out_bbox_embed\.", "model.encoder_output_bbox_embed."),
    (r"^transformer\.enc_output", "model.enc_output"),
    (r"^transformer\.level_embed", "model.level_embed"),
    (r"^transformer\.tgt_embed\.", "model.query_position_embeddings."),
)


_SAM = (
    (r"^image_encoder\.pos_embed", "vision_encoder.pos_embed"),
    (r"^image_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"^image_encoder\.blocks\.(\d+)\.norm", r"vision_encoder.layers.\1.layer_norm"),
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"^image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"^image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"^image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    (r"^prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"^(mask_decoder\.transformer\.layers\.\d+)\.norm", r"\1.layer_norm"),
    (r"^mask_decoder\.transformer\.norm_final_attn", "mask_decoder.transformer.layer_norm_final_attn"),
    (r"(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.1\.", r"\1.layers.0."),
    (r"(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.2\.", r"\1.proj_out."),
)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _split(name: str, value: torch.Tensor, names: tuple[str, str, str]) -> dict[str, torch.Tensor]:
    """A joint projection as transformers' three."""
    stem, kind = re.match(r"(.*)\.(?:qkv\.|in_proj_)(weight|bias)$", name).groups()  # type: ignore[union-attr]
    return {f"{stem}.{n}.{kind}": part for n, part in zip(names, value.chunk(3), strict=True)}


def grounding_dino(model: Any, config: Any) -> Any:
    """transformers' GroundingDinoForObjectDetection with the weights of a groundingdino model."""
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    peer = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=SwinConfig(
                embed_dim=config.embed_dim,
                depths=list(config.depths),
                num_heads=list(config.heads),
                window_size=config.window,
                image_size=config.trained_at,
                out_indices=[2, 3, 4],
            ),
            text_config=BertConfig(**config.text),
            num_queries=config.queries,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            encoder_ffn_dim=config.feedforward,
            decoder_ffn_dim=config.feedforward,
            encoder_attention_heads=config.attention_heads,
            decoder_attention_heads=config.attention_heads,
        )
    )
    wanted = peer.state_dict()
    named: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if "relative_position_index" in name:
            continue
        if name.startswith("backbone.0.norm"):
            stage = int(name.removeprefix("backbone.0.norm").split(".")[0]) + 1
            named[f"model.backbone.conv_encoder.model.hidden_states_norms.stage{stage}.{name.split('.')[-1]}"] = value
        elif name.startswith("backbone."):
            new = "model.backbone.conv_encoder.model.swin." + _renamed(name, _SWIN)
            heads = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
            named |= _split(new.replace(".attn.qkv", ".qkv"), value, heads) if ".qkv." in new else {new: value}
        else:
            rules = (
                _ENCODER
                if name.startswith("transformer.encoder.")
                else _DECODER
                if name.startswith("transformer.decoder.layers.")
                else _REST
            )
            new = _renamed(name, rules)
            named |= _split(new, value, ("query", "key", "value")) if "in_proj_" in new else {new: value}
    lacking = set(wanted) - set(named)
    # transformers keeps Swin's last norm, which nothing reads, and drops BERT's pooler.
    assert all(".swin.layernorm." in name for name in lacking), sorted(lacking)
    assert all(".pooler." in name for name in set(named) - set(wanted)), sorted(set(named) - set(wanted))
    peer.load_state_dict({name: named.get(name, wanted[name]) for name in wanted}, strict=True)
    return peer.eval()


def sam(model: Any, config: Any) -> Any:
    """transformers' SamModel with the weights of a segment_anything model."""
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    vision = SamVisionConfig(
        hidden_size=config.width,
        output_channels=config.prompt,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        image_size=config.image,
        patch_size=config.patch,
        window_size=config.window,
        global_attn_indexes=list(config.whole),
        num_pos_feats=config.prompt // 2,
        mlp_dim=int(config.width * config.mlp),
    )
    prompts = SamPromptEncoderConfig(
        hidden_size=config.prompt,
        image_size=config.image,
        patch_size=config.patch,
        mask_input_channels=config.mask_channels,
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=config.prompt,
        mlp_dim=config.feedforward,
        num_hidden_layers=config.decoder,
        iou_head_hidden_dim=config.iou_hidden,
        num_multimask_outputs=config.masks,
    )
    peer = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))
    named = {_renamed(name, _SAM): value for name, value in model.state_dict().items()}
    shared = "positional_embedding"
    named[f"prompt_encoder.shared_embedding.{shared}"] = named[f"shared_image_embedding.{shared}"]
    peer.load_state_dict(named, strict=True)
    return peer.eval()
