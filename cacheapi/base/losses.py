"""What storing KV with loss costs, in answers."""

from typing import Any

from rest_framework import serializers


class LossSerializer(serializers.Serializer[Any]):
    """`neve.formats.loss.Loss`; null: not measured."""

    codec = serializers.CharField(help_text="int8, fp8 or int4")
    error = serializers.FloatField(
        allow_null=True, help_text="of the KV: root of the mean square error over its own"
    )
    kl = serializers.FloatField(
        allow_null=True,
        help_text="mean Kullback-Leibler divergence of the next token's distribution, in nats",
    )
    argmax = serializers.FloatField(
        allow_null=True, help_text="share of positions whose likeliest token stays"
    )
