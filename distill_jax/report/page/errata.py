"""What the comparison paper (Anonymous 2022) prints, and what this package does.

The paper compares data distillation with active learning on the Stanford Sentiment
Treebank. Its formulae and numbers cannot all be taken as they stand.
"""

from distill_jax.report.page.blocks import Section, Table, Text

# (printed there, what is wrong with it, what is done here)
ERRATA: tuple[tuple[str, str, str], ...] = (
    (
        "BALD with a minus before its second term",
        "Wrong sign: it is H + E[H], above ln C, and not 0 where all passes agree. It "
        "also ranks differently: six test items come as 5, 1, 3, 4, 2, 0 instead of "
        "2, 3, 4, 5, 0, 1.",
        "H − E[H], the mutual information (Houlsby et al. 2011).",
    ),
    (
        "Entropy with log2, then with log; T passes, then F",
        "Two bases and two symbols for one thing.",
        "Nats, with the base as an argument; F everywhere.",
    ),
    (
        "SST has 11,850 sentences, cut into 10,534 and 1,316",
        "It has 11,855: 8,544 for training, 1,101 for validation, 2,210 for test. "
        "1,316 is an eighth of the rest: a new split 8:1, without validation.",
        "The official splits; the pooled split 8:1 as a setting, said not to be "
        "comparable.",
    ),
    (
        "21,5154 phrases, labels 0 to 1, later 5 classes",
        "A misplaced comma; how the labels were binned is not said.",
        "Cut at 0.2, 0.4, 0.6 and 0.8.",
    ),
    (
        "Accuracy 0.9859 with all data",
        "36 points above the best published on SST-5, and not k/1,316 for any whole k.",
        "Never a target.",
    ),
    (
        "Accuracy 0.6290 with 0.1 % random sentences",
        "Above the best published on SST-5 with all data, and not k/1,316.",
        "The accuracy measured here.",
    ),
    (
        "0.1 % of 10,534",
        "That is 10.5 sentences; two for each class are 10, or 0.095 %.",
        "Examples per class first, the percentage second.",
    ),
    (
        "88 % accuracy, and 88 % accuracy of the original data",
        "0.8799 is an accuracy. Its ratio to 0.9859 is 0.8925; that of random, 0.638.",
        "Accuracy and relative accuracy, each by its name.",
    ),
    (
        "52 % of the performance, or of the accuracy, of the original",
        "Stands in no table.",
        "Not used.",
    ),
    (
        "Active learning during 15 epochs",
        "15 are the epochs in a round; the code it follows runs 94 rounds.",
        "Rounds and epochs, each by its name.",
    ),
    (
        "Active learning with 1 % of the data against distillation with 0.1 %",
        "1 % is what one query asks for. After 15 rounds 593 + 15 × 85 = 1,868 labels "
        "are known, 21.9 %.",
        "Equal budgets.",
    ),
    (
        "Active learning is not much better than random, after Jacobs et al. (2021)",
        "They found that it outperforms random with BERT, by less as queries grow.",
        "Quoted as they wrote it.",
    ),
    (
        "Distillation against active learning",
        "Another network, split, measure, budget and access to labels on either side.",
        "One network, split, training and budget; labels read are a column.",
    ),
    (
        "The equations of distillation",
        "The loss is missing from one, two quantities share a symbol, and the mean "
        "over starts is left out.",
        "The mean over random θ0; a fixed start is a row of its own.",
    ),
    (
        "Active learning reconstructs a life-like sample",
        "It does not: it chooses real ones, as the paper's own introduction says.",
        "Real sentences are shown as chosen.",
    ),
    (
        "Figure 3: learning rate of data distillation",
        "The caption says learning rate, the text says accuracy over epochs.",
        "Two figures: learned step sizes, and accuracy.",
    ),
    (
        "No network, word vectors, optimizer, seeds, spread or code",
        "It cannot be repeated.",
        "Every setting, and the command.",
    ),
    (
        "Distillation maintains all information, with stable performance",
        "One corpus, one number, no spread.",
        "Claims only with intervals.",
    ),
    (
        "Labels by people are noisier than those of distillation",
        "The same labels feed both; distillation reads all of them.",
        "Labels read are a column.",
    ),
)


def errata_section() -> Section:
    """The errata as a part of a page."""
    return Section(
        "Errata of the comparison paper",
        [
            Text(
                "What this experiment repeats was compared before (Anonymous 2022). "
                "These are the places where that paper is not followed, and why."
            ),
            Table(
                "What is printed, what is wrong with it, and what is done here",
                ["no.", "printed", "problem", "here"],
                [(i, *erratum) for i, erratum in enumerate(ERRATA, 1)],
                sortable=False,
            ),
        ],
    )
