"""Programs that people write: several optimizers, accumulation, recomputation, offloading, adapters, trainers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from modules import Blocks, Critic, DiT, Generator, Square, UNet  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import peakline as pk  # noqa: E402
from peakline.memory.saved import saved_bytes  # noqa: E402
from peakline.models.graph import Graph  # noqa: E402

DEVICE = "a100-80gb"
capture = partial(pk.capture, device=DEVICE)


def sound(graph: Graph) -> Graph:
    """The graph, once it is well formed, reads back unchanged and has an estimate."""
    graph.check()
    assert Graph.from_json(graph.to_json()) == graph
    found = pk.estimate(graph, DEVICE)
    assert graph.total_bytes("parameter") < found.memory.live <= found.memory.reserved
    assert found.time > 0
    return graph


def live(graph: Graph) -> int:
    """Bytes of the live peak."""
    return int(pk.estimate(graph, DEVICE).memory.live)


# ---- models ----------------------------------------------------------------------------------------------------------
def test_a_unet_keeps_what_it_concatenates() -> None:
    pictures = (torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64))
    graph = sound(capture(UNet, pictures, optimizer="adamw"))
    assert saved_bytes(graph) > sum(2 * 16 * 2**i * (64 // 2**i) ** 2 * 4 for i in range(3))  # the skips alone
    assert any(o.type == "aten.cat" for _, o in graph.operators())


def test_a_diffusion_transformer_folds_into_one_layer() -> None:
    inputs = (torch.zeros(4, 4, 16, 16), torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long),
              torch.zeros(4, 4, 16, 16))  # fmt: skip
    graph = sound(capture(DiT, inputs, optimizer="adamw"))
    assert {block.family: block.repeat for block in graph.blocks if block.family} == {"blocks": 3}


def test_a_gan_trains_two_networks_with_an_optimizer_each() -> None:
    def make_step() -> Callable[[], None]:
        generator, critic = Generator(), Critic()
        g = torch.optim.Adam(generator.parameters(), lr=2e-4)
        c = torch.optim.Adam(critic.parameters(), lr=2e-4)
        real = torch.zeros(8, 3, 32, 32)

        def step() -> None:
            fake = generator(torch.randn(8, 32, 1, 1))
            c.zero_grad()
            loss = F.softplus(-critic(real)).mean() + F.softplus(critic(fake.detach())).mean()
            loss.backward()
            c.step()
            g.zero_grad()
            F.softplus(-critic(fake)).mean().backward()
            g.step()

        return step

    graph = sound(capture(make_step))
    parameters = sum(p.numel() for p in (*Generator().parameters(), *Critic().parameters()))
    assert graph.parameters == parameters
    assert 0 < int(graph.total_bytes("optimizer_state")) - 8 * parameters < 4 * 64
    assert {t.name.split(".")[0] for t in graph.of_role("parameter")} == {"generator", "critic"}


# ---- autograd --------------------------------------------------------------------------------------------------------
def test_a_custom_function_keeps_what_it_saves_and_no_more() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(64, 64, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return Square.apply(self.a(x)).sum()

    graph = sound(capture(Model, torch.zeros(32, 64), optimizer="sgd"))
    assert saved_bytes(graph) == 32 * 64 * 2 + 8  # x in half the format, the loss, and the one it is seeded with


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_keeps_the_layers_inputs_alone(reentrant: bool) -> None:
    x = torch.zeros(128, 64)
    kept = capture(Blocks, x, optimizer="adamw")
    again = sound(capture(lambda: Blocks(reentrant=reentrant), x, optimizer="adamw"))
    assert {o.phase for _, o in again.operators()} >= {"recompute"}
    assert live(again) < live(kept)
    assert saved_bytes(again) <= 8 * x.numel() * 4  # six inputs, the last sum, and the loss


def test_saved_tensors_may_be_kept_on_the_host() -> None:
    class Offloaded(Blocks):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autograd.graph.save_on_cpu(pin_memory=True):
                return super().forward(x)

    x = torch.zeros(512, 64)
    plain, moved = capture(Blocks, x, optimizer="adamw"), capture(Offloaded, x, optimizer="adamw")
    assert saved_bytes(moved) < saved_bytes(plain) / 4
    assert live(moved) < live(plain)


def test_activations_moved_by_hand_leave_the_device() -> None:
    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 1024), nn.Linear(1024, 64)

        def forward(self, x: Tensor) -> Tensor:
            def pack(t: Tensor) -> Tensor:
                return t.to("cpu", non_blocking=True)

            def unpack(t: Tensor) -> Tensor:
                return t.to("cuda", non_blocking=True)

            with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                return self.b(self.a(x).relu()).sum()

    x = torch.zeros(512, 64)
    assert saved_bytes(capture(Moved, x)) < 512 * 1024 * 4 / 2


def test_no_gradient_keeps_nothing() -> None:
    x = torch.zeros(128, 64)
    needed = [live(capture(Blocks, x, mode="inference"))]
    for context in (torch.no_grad, torch.inference_mode):
        module = Blocks()

        def step(context: Any = context, module: nn.Module = module) -> None:
            with context():
                module(x)

        needed.append(live(capture(step)))
    assert needed[0] == needed[1] == needed[2]


# ---- the loop --------------------------------------------------------------------------------------------------------
def loop(*, passes: int = 1, first: bool = True, to_none: bool = True, **options: Any) -> Callable[[], Any]:
    """A function that makes a training step."""

    def make_step() -> Callable[[], None]:
        module = Blocks()
        optimizer = torch.optim.AdamW(module.parameters(), **options)
        x = torch.zeros(32, 64)

        def step() -> None:
            if first:
                optimizer.zero_grad(set_to_none=to_none)
            for _ in range(passes):
                (module(x) / passes).backward()
            optimizer.step()
            if not first:
                optimizer.zero_grad(set_to_none=to_none)

        return step

    return make_step


def test_accumulation_costs_a_temporary_gradient_not_a_second_set() -> None:
    once, twice = sound(capture(loop())), sound(capture(loop(passes=2)))
    gradients = once.parameters * 4
    assert live(once) <= live(twice) < live(once) + gradients / 2
    assert pk.estimate(twice, DEVICE).time > pk.estimate(once, DEVICE).time


def test_gradients_freed_at_the_end_do_not_stand_beside_the_next_forward_pass() -> None:
    kept = capture(loop(first=True))
    freed = capture(loop(first=False))
    zeroed = capture(loop(first=False, to_none=False))
    gradients = kept.parameters * 4
    assert int(freed.total_bytes("gradient")) == gradients
    assert live(zeroed) >= live(freed)


def test_implementations_of_the_optimizer_differ_by_their_temporaries() -> None:
    needed = {
        "foreach": live(capture(loop())),
        "fused": live(capture(loop(fused=True))),
        "loop": live(capture(loop(foreach=False))),
    }
    parameters = capture(loop()).parameters * 4
    assert needed["fused"] < needed["loop"] < needed["foreach"]
    assert 0.9 * parameters < needed["foreach"] - needed["fused"] <= parameters


def logging_loop(*, decides: bool) -> Callable[[], None]:
    """A step that reports its loss, and may stop by it."""
    module = Blocks()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    total = 0.0

    def step() -> None:
        nonlocal total
        optimizer.zero_grad()
        loss = module(torch.zeros(32, 64))
        loss.backward()
        optimizer.step()
        total += 0.9 * loss.item()
        print(f"loss {loss:.3f}, mean {total / 2:.3f}")
        if decides and loss.item() > 1e9:
            raise SystemExit

    return step


def test_a_loss_may_be_reported() -> None:
    sound(capture(logging_loop(decides=False)))


def test_a_loss_may_not_decide() -> None:
    with pytest.raises(ValueError, match=r"test_programs\.py:\d+: .*real=True"):
        capture(logging_loop(decides=True))
    sound(capture(lambda: logging_loop(decides=True), real=True))


def test_the_larger_of_a_reported_number_and_another_is_taken_unseen() -> None:
    """torch's Adafactor limits its steps by `max(1.0, update.norm().item() / …)`."""
    graph = sound(capture(Blocks, torch.zeros(32, 64), optimizer=torch.optim.Adafactor))
    matrix, states = 64 * 256 * 4, [t for t in graph.tensors.values() if t.role == "optimizer_state"]
    assert max(t.bytes for t in states) < matrix / 50  # rows and columns, not the matrix


def test_lengths_that_are_inputs_decide_the_size_of_a_ctc_loss() -> None:
    class Speech(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 30)

        def forward(self, x: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
            probabilities = self.head(x).log_softmax(-1)
            return F.ctc_loss(probabilities, targets, torch.full_like(lengths, len(x)), lengths)

    inputs = (torch.zeros(50, 4, 8), torch.ones(4, 20, dtype=torch.long), torch.tensor([5, 7, 20, 3]))
    graph = capture(Speech, inputs)
    (loss,) = [o for _, o in graph.operators() if o.type == "aten._ctc_loss" and o.phase == "forward"]
    assert [graph.tensors[name].shape for name in loss.outputs] == [(4,), (4, 50, 2 * 20 + 1)]


def test_a_check_of_a_distributions_arguments_finds_them_valid() -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            mean, scale = self.body(x).unbind(-1)
            drawn = torch.distributions.Normal(mean, scale.exp()).rsample()
            return -torch.distributions.Categorical(logits=drawn).log_prob(torch.tensor(3)).mean()

    graph = sound(capture(Policy, torch.zeros(32, 64), optimizer="adam"))
    assert any("all_true" in o.type for _, o in graph.operators())


class Pooled(nn.Module):
    """A norm whose gradient arrives transposed, as from a pool over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)).transpose(1, 2).contiguous().square().sum()


@pytest.mark.parametrize("device", [DEVICE, "cpu"])
def test_the_gradient_of_a_norms_input_is_contiguous_whatever_arrives(device: str) -> None:
    graph = pk.capture(Pooled, torch.zeros(2, 16, 8), device=device)
    types = [o.type for _, o in graph.operators()]
    assert "aten.clone" not in types[types.index("aten.native_layer_norm_backward") :]


def test_a_trained_bias_is_added_to_the_scores_in_place_on_a_cpu() -> None:
    """`_scaled_dot_product_attention_math` runs where the mask has a gradient."""

    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.bias = nn.Linear(8, 8), nn.Parameter(torch.zeros(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            q = self.linear(x)
            return F.scaled_dot_product_attention(q, q, q, attn_mask=self.bias).sum()

    graph = pk.capture(Biased, torch.zeros(2, 4, 16, 8), device="cpu")
    assert [o.type for _, o in graph.operators() if o.phase == "forward"].count("aten.add_") == 1


ROWS = torch.zeros(3, dtype=torch.long)
LOOKUPS: dict[str, Callable[[Tensor], Tensor]] = {
    "aten.scatter_add_": lambda x: x.gather(1, ROWS[:, None]),
    "aten.index_put_": lambda x: x[ROWS],
    "aten.scatter_": lambda x: x.max(1).values,
    "aten.put_": lambda x: x.take(ROWS),
}


class Looking(nn.Module):
    """A table from which a function reads."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.function = nn.Parameter(torch.zeros(8, 4)), function

    def forward(self) -> Tensor:
        return self.function(self.table).sum()


@pytest.mark.parametrize("device", [DEVICE, "cpu"])
@pytest.mark.parametrize("operator", LOOKUPS)
def test_gradients_of_lookups_are_scattered_in_place(operator: str, device: str) -> None:
    """Autograd's formulas treat fake tensors otherwise than plain ones (`areAnyTensorSubclassLike`)."""
    graph = pk.capture(lambda: Looking(LOOKUPS[operator]), (), device=device)
    (scatter,) = [o for _, o in graph.operators() if o.phase == "backward" and o.type == operator]
    (result,) = [graph.tensors[name] for name in scatter.outputs]
    assert result.storage in scatter.inputs


def test_a_gradient_that_arrives_is_not_written_into() -> None:
    graph = capture(lambda: Looking(lambda x: x.index_put((ROWS,), torch.zeros(3, 4))), ())
    made = [graph.tensors[o.outputs[0]] for _, o in graph.operators() if o.type == "aten.index_put"]
    assert [tensor.storage for tensor in made] == [None, None]


def test_a_mask_added_to_scores_may_decide_what_runs() -> None:
    class Padded(Blocks):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            added = (1.0 - mask.float()) * -1e9
            shape = torch.zeros_like(x, dtype=torch.bool)
            return super().forward(x if (added < 0).any() or shape.any() else x[:16])

    def fed(mask: Tensor) -> Graph:
        return capture(Padded, (torch.zeros(32, 64), mask))

    assert live(fed(torch.ones(32, 32, dtype=torch.long))) < live(fed(torch.zeros(32, 32, dtype=torch.long)))


def test_autocast_with_a_scaler_keeps_half_precision_copies() -> None:
    def make_step() -> Callable[[], None]:
        module = Blocks().cuda()
        optimizer = torch.optim.AdamW(module.parameters())
        scaler = torch.amp.GradScaler("cuda")
        x = torch.zeros(32, 64, device="cuda")

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = module(x)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()

        return step

    graph = sound(capture(make_step))
    kinds = {t.dtype.name for t in graph.tensors.values() if t.role == "activation"}
    assert "fp16" in kinds


# ---- what wraps a module ---------------------------------------------------------------------------------------------
def test_tied_weights_are_one_parameter() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(100, 32), nn.Linear(32, 100, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embedding(ids)).logsumexp(-1).sum()

    graph = sound(capture(Tied, torch.zeros(4, 16, dtype=torch.long), optimizer="sgd"))
    assert graph.parameters == 3200
    assert int(graph.total_bytes("gradient")) >= 3200 * 4


def test_functional_call_trains_other_weights_than_the_modules() -> None:
    module = nn.Linear(64, 32)
    weights = {name: torch.zeros_like(p, requires_grad=True) for name, p in module.named_parameters()}
    x = torch.zeros(8, 64)

    def step() -> None:
        torch.func.functional_call(module, weights, (x,)).sum().backward()
        for weight in weights.values():
            weight.grad = None

    graph = sound(capture(step))
    assert any(t.shape == (32, 64) and t.role != "parameter" for t in graph.tensors.values())


def test_a_compiled_module_is_captured_as_eager_and_says_so() -> None:
    x = torch.zeros(32, 64)
    plain = capture(Blocks(), x, optimizer="adamw")
    compiled = capture(torch.compile(Blocks()), x, optimizer="adamw")
    assert live(compiled) == live(plain)
    assert any("torch.compile" in note for note in compiled.notes)
    assert {t.name for t in compiled.of_role("parameter")} == {t.name for t in plain.of_role("parameter")}


def test_adapters_train_and_the_base_is_frozen() -> None:
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")

    def make() -> Any:
        config = transformers.LlamaConfig(
            num_hidden_layers=4, hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=512, use_cache=False,
        )  # fmt: skip
        adapters = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        return peft.get_peft_model(transformers.LlamaForCausalLM(config), adapters)

    ids = torch.zeros(2, 32, dtype=torch.long)
    graph = sound(capture(make, {"input_ids": ids, "labels": ids}, optimizer="adamw"))
    assert graph.trainable_parameters == 4 * (8 * (128 + 128) + 8 * (128 + 64))
    assert int(graph.total_bytes("gradient")) == 4 * graph.trainable_parameters
    assert 0 <= int(graph.total_bytes("optimizer_state")) - 8 * graph.trainable_parameters <= 4 * 16


def test_a_step_of_a_hugging_face_trainer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.GPT2Config(
        n_layer=2, n_embd=64, n_head=2, vocab_size=128, use_cache=False, bos_token_id=0, eos_token_id=1
    )

    def make_step() -> Callable[[], Any]:
        model = transformers.GPT2LMHeadModel(config)
        row = {"input_ids": torch.zeros(16, dtype=torch.long), "labels": torch.zeros(16, dtype=torch.long)}
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=[row] * 16)
        return trainer.train

    graph = sound(capture(make_step, steps=1))
    assert graph.parameters == sum(p.numel() for p in transformers.GPT2LMHeadModel(config).parameters())
    assert int(graph.total_bytes("optimizer_state")) >= 8 * graph.parameters
