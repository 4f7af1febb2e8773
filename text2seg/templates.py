"""Sentence templates for queries, and things that images often show."""

from __future__ import annotations

# The 80 ImageNet templates of OpenAI's CLIP and the five "in the scene" ones of CLIP Surgery.
TEMPLATES: tuple[str, ...] = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)


# Things that images often show. A query counts as present only if it scores higher than these.
DISTRACTORS: tuple[str, ...] = tuple(
    (
        "person, man, woman, child, face, hand, dog, cat, horse, cow, sheep, bird, fish, bear, elephant, "
        "zebra, giraffe, insect, car, bus, truck, train, bicycle, motorcycle, boat, airplane, traffic light, "
        "sign, bench, chair, table, sofa, bed, lamp, door, window, curtain, carpet, mirror, clock, vase, "
        "book, bottle, cup, glass, plate, bowl, knife, fork, spoon, bread, cake, pizza, sandwich, fruit, "
        "apple, banana, orange, vegetable, carrot, meat, phone, computer, keyboard, screen, television, "
        "camera, bag, umbrella, hat, shoe, shirt, dress, ball, toy, guitar, sink, toilet, refrigerator, oven, "
        "tree, flower, grass, leaf, plant, rock, sand, mountain, hill, field, forest, river, lake, sea, "
        "beach, snow, sky, cloud, sun, road, pavement, bridge, building, house, wall, roof, fence, floor, "
        "ceiling, stairs, water, fire, smoke, text, painting, paper, box, tool, wheel, shadow, light, "
    )
    .strip(", ")
    .split(", ")
)
