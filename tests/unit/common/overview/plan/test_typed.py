import shlex

from beit.common.overview.plan.typed import finetune_command, pretrain_command, tokenize_command


def test_settings_of_tokenizing_become_options_and_the_last_counts():
    settings = ["views=16", "materialize=true", "augment.scale=[0.02,0.5]", "img_size=64", "views=4"]
    words = shlex.split(tokenize_command("my photos", settings, gpus=None))
    assert words[:4] == ["beit", "tokenize", "my photos", "store"]
    assert words[4:] == ["--views", "4", "--materialize", "--set", "augment.scale=[0.02,0.5]", "--img-size", "64"]


def test_a_number_of_images_leaves_a_place_for_the_source():
    assert tokenize_command("", [], gpus=8) == "beit tokenize SOURCE store --gpus 8"


def test_ranks_and_machines():
    command = pretrain_command("store", "beit_base_patch16_224_1k", ["a.b=1"], gpus=8, machines=2, init=False)
    assert command.endswith("--recipe beit_base_patch16_224_1k --gpus 8 --hostfile HOSTS --set a.b=1")
    assert "--gpus" not in pretrain_command("store", None, [], gpus=None, machines=1, init=False)


def test_an_encoder_to_continue_is_still_to_be_named():
    assert "--init ENCODER" in pretrain_command(
        "store", "continue_mini_patch8_64", [], gpus=None, machines=1, init=True
    )


def test_fine_tuning_goes_on_with_what_was_pre_trained():
    command = finetune_command("small_500", [], gpus=None, machines=1)
    assert "--encoder runs/pretrain/encoder" in command and command.endswith("--recipe small_500")
