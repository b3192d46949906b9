"""A limiter and a serde for plugq, and a storage that is yet to be filled in."""

from plugq_template._limiter import TemplateLimiter, TemplateLimiterOptions
from plugq_template._serde import TemplateSerde, TemplateSerdeOptions
from plugq_template._storage import TemplateStorage, TemplateStorageOptions

__all__ = [
    "TemplateLimiter",
    "TemplateLimiterOptions",
    "TemplateSerde",
    "TemplateSerdeOptions",
    "TemplateStorage",
    "TemplateStorageOptions",
]
