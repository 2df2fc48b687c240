"""Further conditions of a checkpoint: ControlNets, T2I-Adapters, IP-Adapters, images that a network takes, languages.

Each function makes a new ``Model`` of a given one, which keeps its weights; ``Model.id`` follows. All compute in torch.
"""

from .common import weights_of
from .control import Controlled, edge_map, new_control, with_controls
from .image_prompt import with_image_prompts
from .input_image import with_image

__all__ = ["Controlled", "edge_map", "new_control", "weights_of", "with_controls", "with_image", "with_image_prompts"]
