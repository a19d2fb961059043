from .embedding_callback import EmbeddingCallback as EmbeddingCallback
from .heads import make_head as make_head
from .layer_probes import layer_probes as layer_probes
from .learning_curve import learning_curve as learning_curve
from .metrics import load_metric as load_metric
from .svm import LinearSVM as LinearSVM
