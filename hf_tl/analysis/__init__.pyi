from .verify_adapter import verify_adapter as verify_adapter
from .weight_change import compare_adapters as compare_adapters
from .weight_change import measure_updates as measure_updates
