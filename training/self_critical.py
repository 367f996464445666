"""Self-critical training: a captioner draws captions, and learns each by how far it scores above the others."""

import keras
import numpy as np

from keras_attention.models.decoding import sample
from keras_attention.models.tokenizers import END, UNK

from .batching import CaptionSets, TokenSequences
from .caption_scores import CiderD, SentenceBleu
from .errors import InputError


class SelfCritical:
    """Batches of captions that a model draws when they are asked for, as `Batches` are read; on TensorFlow.

    y and target are k captions of each image, and the sample weight of a caption is its `Reward` less the mean of the
    other k - 1: the gradient of the cross-entropy under these weights is, but for the size that the loss gives it, that
    of the expected score (REINFORCE), its baseline the model's own other captions. END counts as a word, so that
    captions learn to end. They are drawn without dropout.

    Args:
        model: An ImageCaptioner that knows captions already; its weights at the time are those that draw.
        pairs: (source, captions) of the training data, a row for each caption, or a function of the epoch that gives
            them.
        samples: k, at least 2.
        max_length: Tokens of a caption at most, END counted.
        images: Images of a batch.
        seed: Of the order and the draws.

    Attributes:
        mean_reward: The mean reward of what the current epoch's batches have drawn.

    References:
        Rennie et al. 2017, "Self-critical Sequence Training for Image Captioning", https://arxiv.org/abs/1612.00563;
        Luo 2020, "A Better Variant of Self-Critical Sequence Training", https://arxiv.org/abs/2003.09971 (the mean of
        the others as the baseline).
    """

    ahead = 0  # what is drawn follows from the weights after the batch before

    def __init__(self, model, pairs, samples, max_length, images, seed):
        if keras.backend.backend() != "tensorflow":
            raise InputError(
                "training.self_critical needs TensorFlow as backend, where captions are drawn in the midst of an epoch."
            )
        self.epoch = 0
        self.mean_reward = None
        self._pairs = pairs if callable(pairs) else lambda epoch: pairs
        source, captions = self._pairs(0)
        sets = captions if isinstance(captions, CaptionSets) else CaptionSets(captions, source.shown)
        first, references = _by_image(sets)
        self._places = first if sets is captions else sets.rows[first, 0]  # where the source shows each image
        self._reward = Reward(references)
        self._samples, self._seed = samples, seed
        self._max_length = min(max_length, model.max_target_length or max_length)
        self._images = min(images, len(references))
        self._draw = _drawer(model, samples)
        self._scores = []

    def __len__(self):
        return -(-len(self._places) // self._images)

    def __iter__(self):
        self._scores = []
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index):
        """Batch number index of the current epoch: (x, y, weights [B * k, 1])."""
        order = np.random.default_rng([self._seed, self.epoch, 0]).permutation(len(self._places))
        order = np.resize(order, len(self) * self._images)  # the last batch is full, too
        images = order[index * self._images :][: self._images]
        source, _ = self._pairs(self.epoch)
        x = source.inputs(self._places[images], 0)
        shape = (len(images) * self._samples, self._max_length)
        numbers = np.random.default_rng([self._seed, self.epoch, 1 + index]).random(shape, "float32")
        drawn = _captions(*(part.numpy() for part in self._draw(x, numbers)), self._max_length)
        scores = [self._reward.score(caption, images[row // self._samples]) for row, caption in enumerate(drawn)]
        self._scores.append(np.mean(scores))
        self.mean_reward = float(np.mean(self._scores))
        weights = above_the_others(np.reshape(scores, (-1, self._samples)))
        target, y = _as_targets(drawn, self._max_length)
        return {**x, "target": target}, y, weights.reshape(-1, 1)


class Reward:
    """What a caption is worth: its CIDEr-D in hundredths and twice its BLEU-4, against its image's captions.

    CIDEr-D asks for words that tell this image from others, BLEU-4 for phrases as people write them; of Flickr8k's own
    captions, each against the others of its image, the former, times 100, varies about four times as much.

    Args:
        references: n lists of lists of words, or of anything that is compared by what it is written as.
    """

    def __init__(self, references):
        self.references = references
        self._cider, self._bleu = CiderD(references), SentenceBleu(references)

    def score(self, answer, number):
        """The reward of an answer (a list of words) against references number `number`."""
        return 100 * self._cider.score(answer, number) + 2 * self._bleu.score(answer, number)


def above_the_others(scores):
    """How far each score of a row [B, k] is above the mean of the row's others, float32 [B, k]; of equal ones 0."""
    scores = scores - scores[:, :1]
    count = scores.shape[1]
    return ((scores - scores.mean(axis=1, keepdims=True)) * (count / (count - 1))).astype("float32")


def _by_image(sets):
    """(the first set of each image, lists of each image's captions, END behind each).

    A word that the vocabulary lacks is like none that a model may write.
    """
    places, references = {}, {}
    for place, image in enumerate(sets.images.tolist()):
        places.setdefault(image, place)
        for row in sets.rows[place][sets.rows[place] >= 0]:
            words = [-1 if token == UNK else token for token in sets.captions[row].tolist()]
            references.setdefault(image, []).append([*words, END])
    return np.array(list(places.values())), list(references.values())


def _drawer(model, samples):
    """A compiled function from x of B images and random numbers [B * k, T] to ids [B, k, T] and lengths [B, k]."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def draw(x, numbers):
        drawn = sample(model, model.encode(x), numbers, num_samples=samples)
        return drawn.ids, drawn.lengths

    return draw


def _captions(ids, lengths, max_length):
    """Lists of ids, END behind those that have ended."""
    rows = zip(ids.reshape(-1, ids.shape[-1]), lengths.reshape(-1), strict=True)
    return [[*row[:length].tolist(), *([END] if length < max_length else [])] for row, length in rows]


def _as_targets(captions, max_length):
    """(target, y) int32 [n, T] of ids that end with END, or after max_length of them without."""
    sequences = TokenSequences.from_lists([[token for token in caption if token != END] for caption in captions])
    width = min(max_length, -(-max(map(len, captions)) // 4) * 4)
    target, y = sequences.targets(np.arange(len(captions)), width + 1)
    return target[:, :width], y[:, :width]
