from .ray_embedding import RayEmbedding as RayEmbedding
from .ray_executor import RayExecutor as RayExecutor
