"""How models are trained: the optimizer, the teacher, and the runs that distil a student."""

import dataclasses

from lraqvit_jax.options.records import option, part


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warmup and cosine decay to zero."""

    learning_rate: float = option(1e-5, low=0)  # at its peak
    warmup: int = option(0, low=0)  # updates until the peak
    weight_decay: float = option(0.0, low=0)  # decoupled, on matrices only: biases, norms and vectors have none
    grad_clip: float = option(0.0, low=0)  # largest global norm of the gradient; 0 is no clipping
    beta2: float = option(0.999, low=0, high=1)


@dataclasses.dataclass(frozen=True)
class Recipe(Optimizer):
    """An optimizer and for how many updates it runs."""

    steps: int = option(0, low=0)

    @classmethod
    def of(cls, optimizer: Optimizer, steps: int, **changes: float) -> "Recipe":
        """That optimizer for so many steps, with some of its fields changed."""
        return cls(**dataclasses.asdict(part(Optimizer, optimizer)) | changes, steps=steps)


@dataclasses.dataclass(frozen=True)
class Teacher(Optimizer):
    """Training of the dense model on labels."""

    learning_rate: float = option(1e-3, low=0)
    steps: int = option(0, low=0)  # 0 trains none: the weights are the teacher
    label_smoothing: float = option(0.0, low=0, high=1)


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What a student is trained towards: the weights of the terms of its loss, in the order in which they are added up.

    Each weight belongs to one file of `training/terms/`, which names it; 0 leaves the term out.
    """

    alpha: float = option(1.0, low=0)  # of the cross-entropy with the labels
    bound: float = option(0.0, low=0)  # of PELA's penalty, mean over pairs of (max |u v - W|)²
    beta: float = option(1.0, low=0)  # of the block distillation
    gamma: float = option(0.0, low=0)  # of KL(teacher || student) of the logits
    delta: float = option(0.0, low=0)  # of KL(teacher || student) of the attention maps
    temperature: float = option(1.0, above=0)  # of the divergence of the logits
    teacher_forced: bool = False  # True feeds each block of the student what the teacher's block reads
    normalized: bool = False  # True divides each block's error by the mean square of the teacher's output
    last_block: bool = False  # True compares the outputs of the last block alone


@dataclasses.dataclass(frozen=True)
class Run(Distillation):
    """One row of the ladder: a low-rank start and how it is trained."""

    decomposition: str = "svd"  # a module of lraqvit_jax.lowrank with `decompose`: svd, asvd, whitened, aafm, rrr, kfac
    branch: str = "wr"  # wr | zero | random | small_random; none trains one pair
    train_base: bool = True  # False freezes u and v and trains the branch alone
    image_size: int = option(0, low=0)  # of training; 0 is the model's. Smaller is faster: positions are resampled
    steps: int = option(0, low=0)  # 0 takes the config's `steps`
    learning_rate: float = option(0.0, low=0)  # 0 takes optimizer.learning_rate
    weight_decay: float = -1.0  # below 0 takes optimizer.weight_decay

    @property
    def distillation(self) -> Distillation:
        return part(Distillation, self)

    def recipe(self, optimizer: Optimizer, steps: int) -> Recipe:
        """How the run is trained: the config's `optimizer` and `steps` with what the run itself says."""
        rate = self.learning_rate or optimizer.learning_rate
        decay = self.weight_decay if self.weight_decay >= 0 else optimizer.weight_decay
        return Recipe.of(optimizer, self.steps or steps, learning_rate=rate, weight_decay=decay)


@dataclasses.dataclass(frozen=True)
class Mix:
    """Beta parameters of mixup and CutMix, 0 for off; where both are on, cutmix has the probability `switch`."""

    mixup: float = option(0.0, low=0)
    cutmix: float = option(0.0, low=0)
    switch: float = option(0.5, low=0, high=1)
