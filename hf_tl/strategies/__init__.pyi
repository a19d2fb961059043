from .compare import compare as compare
from .comparison import Comparison as Comparison
from .strategy import Effort as Effort
from .strategy import Fitted as Fitted
from .strategy import Strategy as Strategy
from .strategy import find_strategy as find_strategy
from .transfer import Transfer as Transfer
