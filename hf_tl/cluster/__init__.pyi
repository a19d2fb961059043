from .ray_embedding import RayEmbedding as RayEmbedding
