"""Common English nouns and adjectives that the tiny tokenizer knows as whole words.

Class names of users' own images are mostly such words; a name in whole words takes one token a word.
The tiny models never saw most of them, so they are only names, without a meaning.
"""

COMMON_WORDS = tuple(
    """
    airplane animal apple aquarium arm baby backpack ball balloon banana band baseball basket bat bear beaver bed bee
    beetle belt bench bicycle big bike bird black blanket blouse blue boat book boot boots bottle bowl box boy bread
    bridge broccoli brown brush bus butterfly button cabinet cake camel camera can cap car card carrot castle cat
    caterpillar cattle cell chair cheese chimpanzee chip clean clock cloth clothes cloud cockroach coffee cold collar
    color computer cookie couch cow crab crack cracked cream crocodile crop cup cut damaged defect dent dining
    dinosaur dirty dog dolphin donut door dot dress drier elephant engine eye fabric face field fire fish fire flag
    flat flatfish flower food foot forest fork fox fresh frisbee fruit fur giraffe girl glass global glove gold good
    grass green gun hair hairy hamster hand handbag hat head helmet high hole horse hot house human hydrant ice insect
    iron jacket jeans jersey keyboard key kangaroo kite knife lamp land laptop large lawn leaf leather leg lemon
    leopard light line lion little lizard lobster local long machine man maple meat metal meter microwave mirror
    mobile moon motorcycle mountain mouse mower mushroom neck new nominal normal oak office old orange orchid otter
    oven paint palm pan panel pants paper park parking pattern pea pear pen people pepper person phone pickup picture
    pine pink pipe pizza plain plant plastic plate player poppy porcupine possum pot potted rabbit raccoon racket
    rain ray red refrigerator remote ripe road rock rocket rose rough round rust rusty sandwich scarf scissors scratch
    sea seal shark shelf shoe shoes shirt short shrew sign signal silver sink skate skateboard skirt skunk sky
    skyscraper sleeve small snail snake snow snowboard soap socks sofa sole spider spoon sports spot squirrel stain
    steel stop stove street stripe striped suit suitcase sunflower surfboard sweater sweet table tank teddy telephone
    television tennis textile thread tie tiger tire toaster toilet tooth toothbrush top tower toy tractor traffic
    train tree trout truck tulip turtle tv umbrella vase vehicle wall wardrobe washer watch water whale wheel white
    whole willow window wine wolf woman wood wool worm woven yellow young zebra
    """.split()
)
