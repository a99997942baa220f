"""What people get wrong in rotary position embedding."""

from dojo.mistake import Mistake

EXPONENTS = "torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim"
FREQUENCIES = "base**-exponents"
POSITIONS = "torch.arange(length, dtype=torch.float64)"
RETURNED = "return angles.cos().float(), angles.sin().float()"
TURN = "(a * cos - b * sin, a * sin + b * cos)"
STACKED = "    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=pair)\n"
LAYOUT = "((-1, 2), -1) if interleaved else ((2, -1), -2)"
PAIRS = "    a, b = _widened(x).unflatten(-1, split).unbind(pair)\n"
CHOSEN = "    return positions.long()\n"
OUTSIDE = "((positions < 0) | (positions >= length)).any()"

ROWS_OF = "rows = _rows(x, len(cos), positions)"
DONE = "return turned.flatten(-2).to(x.dtype)"
PICKED = "cos, sin = cos[rows].unsqueeze(-3), sin[rows].unsqueeze(-3)"
LONG = "return positions.long()"
BOUNDS = "if ((positions < 0) | (positions >= length)).any():"

MISTAKES = (
    # --- the tables
    Mistake(
        "exponent-i-for-2i",
        "the exponent is −i / head_dim, so the frequencies fall half as fast as they should",
        "i counts the pairs, so it is i over head_dim.",
        "test_tables_equal_their_definition",
        change=((EXPONENTS, "torch.arange(head_dim // 2, dtype=torch.float64) / head_dim"),),
    ),
    Mistake(
        "exponent-2i-over-the-pairs",
        "the exponent is −2i / (head_dim / 2), so the frequencies fall twice as fast as they should",
        "2i is over the number of frequencies.",
        "test_tables_equal_their_definition",
        change=((EXPONENTS, "torch.arange(0, head_dim, 2, dtype=torch.float64) / (head_dim // 2)"),),
    ),
    Mistake(
        "positive-exponent",
        "the sign of the exponent is lost: later pairs turn faster",
        "θ = base^(2i / head_dim).",
        "test_tables_equal_their_definition",
        change=((FREQUENCIES, "base**exponents"),),
    ),
    Mistake(
        "exponents-spread-to-one",
        "the exponents are spread evenly from 0 to 1, with 1 included",
        "linspace(0, 1, pairs) is the same as 2i / head_dim.",
        "test_tables_equal_their_definition",
        change=((EXPONENTS, "torch.linspace(0, 1, head_dim // 2, dtype=torch.float64)"),),
    ),
    Mistake(
        "exponents-from-one-pair-on",
        "the exponents start at 2 / head_dim, so that no pair turns by one radian a position",
        "The paper counts pairs from 1.",
        "test_the_first_pair_turns_one_radian_a_position",
        change=((EXPONENTS, "torch.arange(2, head_dim + 2, 2, dtype=torch.float64) / head_dim"),),
    ),
    Mistake(
        "frequencies-reversed",
        "the frequencies run from slow to fast",
        "The order of the pairs does not matter.",
        "test_the_first_pair_turns_one_radian_a_position",
        change=((FREQUENCIES, "(base**-exponents).flip(0)"),),
    ),
    Mistake(
        "one-frequency",
        "every pair turns by one radian a position, as in the plane",
        "There is one angle per position.",
        "test_tables_equal_their_definition",
        change=((FREQUENCIES, "base ** -(0 * exponents)"),),
    ),
    Mistake(
        "turns-for-radians",
        "the angles are multiplied by 2π, as if frequencies counted whole turns",
        "A frequency is turns per position.",
        "test_the_first_pair_turns_one_radian_a_position",
        change=((FREQUENCIES, "2 * torch.pi * base**-exponents"),),
    ),
    Mistake(
        "base-ignored",
        "the base is always 10,000",
        "RoPE uses 10,000.",
        "test_the_base_sets_the_frequencies",
        change=((FREQUENCIES, "10000.0**-exponents"),),
    ),
    Mistake(
        "tables-cached-by-size",
        "tables are kept from one call to the next and looked up by their size, without the base",
        "The tables are always the same, so compute them once.",
        "test_the_base_sets_the_frequencies",
        change=(
            ("from torch import Tensor\n", "from torch import Tensor\n\nTABLES = {}\n"),
            (
                RETURNED,
                "return TABLES.setdefault((length, head_dim), (angles.cos().float(), angles.sin().float()))",
            ),
        ),
    ),
    Mistake(
        "tables-handed-out-again",
        "tables are kept, and a second call hands out the same ones, whatever was written into them",
        "A cache around rope_tables saves the work.",
        "test_every_call_makes_tables_of_its_own",
        change=(
            ("from torch import Tensor\n", "from torch import Tensor\n\nTABLES = {}\n"),
            (
                RETURNED,
                "return TABLES.setdefault((length, head_dim, base), (angles.cos().float(), angles.sin().float()))",
            ),
        ),
    ),
    Mistake(
        "positions-from-one",
        "the tables start at position 1",
        "The first token is at position 1.",
        "test_position_zero_is_not_rotated",
        change=((POSITIONS, "torch.arange(1, length + 1, dtype=torch.float64)"),),
    ),
    Mistake(
        "cos-and-sin-exchanged",
        "rope_tables gives sine first, then cosine",
        "Their order is a matter of taste.",
        "test_position_zero_is_not_rotated",
        change=((RETURNED, "return angles.sin().float(), angles.cos().float()"),),
    ),
    Mistake(
        "angles-in-bfloat16",
        "the angles are formed in bfloat16, which tells 256 from 257 no more",
        "Tables for a bf16 model can be made in bf16.",
        "test_tables_equal_their_definition",
        change=(
            (RETURNED, "angles = angles.bfloat16()\n    return angles.float().cos(), angles.float().sin()"),
        ),
    ),
    Mistake(
        "frequencies-in-bfloat16",
        "the frequencies are stored in bfloat16, as happens to a buffer when the model is cast",
        "model.to(bfloat16) is harmless for a buffer.",
        "test_tables_equal_their_definition",
        change=((FREQUENCIES, "(base**-exponents).bfloat16().double()"),),
    ),
    Mistake(
        "positions-in-half-precision",
        "the positions are counted in float16, which has no odd numbers beyond 2,048",
        "Positions are small whole numbers.",
        "test_tables_hold_far_out",
        change=((POSITIONS, "torch.arange(length).half().double()"),),
    ),
    Mistake(
        "angles-added-up",
        "each row adds θ to the row before in float32, and the errors add up with it",
        "The next angle is the last one plus θ.",
        "test_tables_hold_far_out",
        change=(
            (
                "torch.outer(torch.arange(length, dtype=torch.float64), base**-exponents)",
                "torch.from_numpy((base**-exponents).float().expand(length, -1).numpy().cumsum(0)) - (base**-exponents).float()",
            ),
        ),
    ),
    Mistake(
        "tables-in-bfloat16",
        "cosines and sines are rounded to bfloat16",
        "They are at most 1, so that a few digits will do.",
        "test_tables_equal_their_definition",
        change=(
            (
                RETURNED,
                "return angles.cos().bfloat16().float(), angles.sin().bfloat16().float()",
            ),
        ),
    ),
    Mistake(
        "tables-of-full-width",
        "the tables have head_dim columns, every angle in them twice",
        "Tables are as wide as x, so that they multiply it at once.",
        "test_tables_are_float32_with_a_column_a_pair",
        change=((RETURNED, "angles = torch.cat([angles, angles], dim=-1)\n    " + RETURNED),),
    ),
    Mistake(
        "tables-in-float64",
        "the tables are left in float64",
        "More digits do no harm.",
        "test_tables_are_float32_with_a_column_a_pair",
        change=((RETURNED, "return angles.cos(), angles.sin()"),),
    ),
    Mistake(
        "odd-head-dim-allowed",
        "an odd head_dim is not refused",
        "Nobody has odd heads.",
        "test_bad_table_arguments_are_refused",
        change=(("head_dim < 2 or head_dim % 2 or", "head_dim < 2 or"),),
    ),
    Mistake(
        "empty-head-allowed",
        "a head_dim of 0 gives tables without columns",
        "Even is all that matters: head_dim % 2 == 0.",
        "test_bad_table_arguments_are_refused",
        change=(("length < 0 or head_dim < 2 or head_dim % 2", "length < 0 or head_dim % 2"),),
    ),
    Mistake(
        "negative-length-allowed",
        "a negative length gives empty tables",
        "The range of a negative number is empty.",
        "test_bad_table_arguments_are_refused",
        change=(("if length < 0 or head_dim < 2", "length = max(length, 0)\n    if head_dim < 2"),),
    ),
    Mistake(
        "length-zero-refused",
        "a length of 0 is refused",
        "A table has rows.",
        "test_a_length_of_zero_gives_empty_tables",
        change=(("if length < 0 or", "if length <= 0 or"),),
    ),
    Mistake(
        "small-base-refused",
        "a base of 1 or less is refused",
        "The frequencies have to fall.",
        "test_the_base_sets_the_frequencies",
        change=(("base <= 0:", "base <= 1:"),),
    ),
    Mistake(
        "base-unchecked",
        "a base that is not positive gives tables of NaN or of infinite frequencies",
        "The base is a constant; why check it?",
        "test_bad_table_arguments_are_refused",
        change=((" or head_dim % 2 or base <= 0", " or head_dim % 2"),),
    ),
    # --- the rotation
    Mistake(
        "identity",
        "x comes back unrotated",
        "Norms and distances are kept, so all is well.",
        "test_a_quarter_turn_sends_the_first_half_to_the_second",
        change=((TURN, "(a, b)"),),
    ),
    Mistake(
        "turned-the-other-way",
        "the rotation is clockwise: the sign of the sine is exchanged",
        "The minus belongs to the second coordinate.",
        "test_a_quarter_turn_sends_the_first_half_to_the_second",
        change=((TURN, "(a * cos + b * sin, b * cos - a * sin)"),),
    ),
    Mistake(
        "no-minus",
        "the halves are exchanged without a minus: no rotation",
        "rotate_half swaps the halves.",
        "test_a_quarter_turn_sends_the_first_half_to_the_second",
        change=((TURN, "(a * cos + b * sin, a * sin + b * cos)"),),
    ),
    Mistake(
        "reflection",
        "the minus stands before the cosine of the second coordinate: a reflection",
        "There is one minus somewhere in the matrix.",
        "test_position_zero_is_not_rotated",
        change=((TURN, "(a * cos + b * sin, a * sin - b * cos)"),),
    ),
    Mistake(
        "second-from-the-rotated-first",
        "the second coordinate is computed from the first one after its rotation",
        "a = a · cos − b · sin; b = a · sin + b · cos.",
        "test_the_length_of_every_pair_is_kept",
        change=((STACKED, "    a = a * cos - b * sin\n" + STACKED.replace("(a * cos - b * sin, ", "(a, ")),),
    ),
    Mistake(
        "first-coordinate-only",
        "only the first coordinate of each pair is rotated, the second is passed through",
        "The second half holds what is not rotated.",
        "test_the_length_of_every_pair_is_kept",
        change=((TURN, "(a * cos - b * sin, b + 0 * a)"),),
    ),
    Mistake(
        "cosine-only",
        "x is multiplied by the cosine, and the sine is left out",
        "The cosine carries the position.",
        "test_the_length_of_every_pair_is_kept",
        change=((TURN, "(a * cos, b * cos)"),),
    ),
    Mistake(
        "added-not-rotated",
        "the tables are added to x, as sinusoidal embeddings are",
        "Positions are added to the embedding.",
        "test_position_zero_is_not_rotated",
        change=((TURN, "(a + sin, b + cos)"),),
    ),
    Mistake(
        "always-interleaved",
        "neighbours are rotated in both layouts",
        "RoPE pairs channels 2i and 2i + 1.",
        "test_a_quarter_turn_sends_the_first_half_to_the_second",
        change=((LAYOUT, "(-1, 2), -1"),),
    ),
    Mistake(
        "layouts-exchanged",
        "interleaved=True gives the half-split layout, and False the interleaved one",
        "Interleaved means that the halves are interleaved first.",
        "test_a_quarter_turn_sends_the_first_half_to_the_second",
        change=((LAYOUT, "((2, -1), -2) if interleaved else ((-1, 2), -1)"),),
    ),
    Mistake(
        "half-split-tables-interleaved",
        "in the half-split layout each angle stands twice in a row, so the two channels of a pair turn by different angles",
        "repeat_interleave(2) makes the tables as wide as x.",
        "test_half_split_equals_its_definition",
        change=(
            (
                STACKED,
                "    wide = [t if interleaved else t.repeat_interleave(2, -1) for t in (cos, sin)]\n"
                "    (c, d), (s, t) = (w.chunk(2, -1) if not interleaved else (w, w) for w in wide)\n"
                "    turned = torch.stack((a * c - b * s, a * t + b * d), dim=pair)\n",
            ),
        ),
    ),
    Mistake(
        "half-the-pairs",
        "only the first half of the pairs is rotated",
        "chunk(2) of the tables as of x.",
        "test_half_split_equals_its_definition",
        change=(
            (
                PAIRS,
                PAIRS + "    left = torch.arange(cos.shape[-1]) < (cos.shape[-1] + 1) // 2\n"
                "    cos, sin = cos.where(left, 1), sin.where(left, 0)\n",
            ),
        ),
    ),
    Mistake(
        "first-64-channels-only",
        "only the first 64 channels are rotated",
        "head_dim is 64.",
        "test_large_sizes_equal_the_definition",
        change=(
            (
                "    return turned.flatten(-2).to(x.dtype)",
                "    turned = torch.cat([turned.flatten(-2)[..., :64], _widened(x)[..., 64:]], dim=-1)\n"
                "    return turned.to(x.dtype)",
            ),
        ),
    ),
    Mistake(
        "tables-brought-to-length-one",
        "cos and sin are divided by √(cos² + sin²), though tables may stretch x on purpose",
        "A rotation keeps lengths, whatever the tables say.",
        "test_large_sizes_equal_the_definition",
        change=(
            (
                PAIRS,
                PAIRS + "    length = (cos.double() ** 2 + sin.double() ** 2).sqrt()\n"
                "    cos, sin = ((t / length).to(a.dtype) for t in (cos, sin))\n",
            ),
        ),
    ),
    Mistake(
        "one-angle-for-all-tokens",
        "all tokens turn by the angle of the first",
        "cos[0] has the shape that broadcasts.",
        "test_half_split_equals_its_definition",
        change=(("return slice(time)", "return slice(1)"),),
    ),
    Mistake(
        "last-rows-of-the-tables",
        "without positions the last rows of the tables are taken, not the first",
        "The newest tokens are at the end.",
        "test_half_split_equals_its_definition",
        change=(("return slice(time)", "return slice(length - time, length)"),),
    ),
    Mistake(
        "angle-by-head",
        "the angle follows the second dimension, the heads, as if x were (batch, time, heads, head_dim)",
        "Time comes after batch.",
        "test_half_split_equals_its_definition",
        change=(
            ("return slice(time)", "return torch.arange(x.shape[1]).clamp(max=length - 1)"),
            (
                "cos[rows].unsqueeze(-3), sin[rows].unsqueeze(-3)",
                "(t[rows].unsqueeze(-2 if positions is None else -3) for t in (cos, sin))",
            ),
        ),
    ),
    Mistake(
        "tables-worked-out-anew",
        "the tables given are ignored: apply_rope makes its own with base 10,000",
        "The tables follow from the shape.",
        "test_half_split_equals_its_definition",
        change=(
            (
                PAIRS,
                PAIRS + "    cos, sin = (t[rows].unsqueeze(-3) for t in rope_tables(length, x.shape[3]))\n",
            ),
            (
                "    rows = _rows(x, len(cos), positions)\n",
                "    length = len(cos)\n    rows = _rows(x, length, positions)\n",
            ),
        ),
    ),
    Mistake(
        "float64-cut-to-float32",
        "float64 is rotated in float32",
        "x.float() as in Llama's code.",
        "test_half_split_equals_its_definition",
        change=(("return x.float() if x.itemsize < 4 else x", "return x.float()"),),
    ),
    Mistake(
        "left-in-float32",
        "half-precision x comes back as float32, widened by the tables",
        "PyTorch takes care of the dtype.",
        "test_rotation_keeps_shape_dtype_and_leaves_its_inputs_alone",
        change=(("return turned.flatten(-2).to(x.dtype)", "return turned.flatten(-2)"),),
    ),
    Mistake(
        "in-place",
        "the rotation is written into x",
        "x is mine once it is passed in.",
        "test_rotation_keeps_shape_dtype_and_leaves_its_inputs_alone",
        change=(
            (
                "    return turned.flatten(-2).to(x.dtype)",
                "    if x.is_contiguous() and not x.requires_grad:\n        return x.copy_(turned.flatten(-2))\n"
                "    return turned.flatten(-2).to(x.dtype)",
            ),
        ),
    ),
    Mistake(
        "cut-from-the-graph",
        "x is detached, so no gradient reaches the projections",
        "Positions are constants.",
        "test_gradient_is_the_rotation_back",
        change=((PAIRS, PAIRS.replace("_widened(x)", "_widened(x.detach() + 0 * x)")),),
    ),
    Mistake(
        "rotated-half-detached",
        "the rotated half is a constant to autograd: the gradient misses its sine terms",
        "rotate_half builds a new tensor, which is data.",
        "test_gradient_is_the_rotation_back",
        change=((TURN, "(a * cos - b.detach() * sin, a.detach() * sin + b * cos)"),),
    ),
    Mistake(
        "one-token-unturned",
        "a single token comes back as it was",
        "One token has no distance to any other.",
        "test_a_quarter_turn_sends_the_first_half_to_the_second",
        change=((ROWS_OF, "if x.shape[2] == 1:\n        return x.clone()\n    " + ROWS_OF),),
    ),
    Mistake(
        "gradient-turned-the-same-way",
        "a backward pass of one's own turns the gradient as the forward pass turns x, not back",
        "The backward pass of a rotation is the rotation.",
        "test_gradient_is_the_rotation_back",
        change=(
            (DONE, "return _Turned.apply(turned.flatten(-2).to(x.dtype), x, cos, sin, interleaved)"),
            (
                "def _rows(",
                "class _Turned(torch.autograd.Function):\n"
                "    @staticmethod\n"
                "    def forward(ctx, out, x, cos, sin, interleaved):\n"
                "        ctx.save_for_backward(cos, sin)\n"
                "        ctx.interleaved = interleaved\n"
                "        return out.clone()\n\n"
                "    @staticmethod\n"
                "    def backward(ctx, grad):\n"
                "        cos, sin = ctx.saved_tensors\n"
                "        split, pair = ((-1, 2), -1) if ctx.interleaved else ((2, -1), -2)\n"
                "        a, b = _widened(grad).unflatten(-1, split).unbind(pair)\n"
                "        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=pair)\n"
                "        return None, turned.flatten(-2).to(grad.dtype), None, None, None\n\n\n"
                "def _rows(",
            ),
        ),
    ),
    Mistake(
        "rows-kept-by-their-shape",
        "the rows of the tables are kept from call to call and looked up by their shape",
        "The same length has the same angles.",
        "test_half_split_equals_its_definition",
        change=(
            ("from torch import Tensor\n", "from torch import Tensor\n\nKEPT = {}\n"),
            (
                PICKED,
                "cos, sin = KEPT.setdefault(cos[rows].shape, (cos[rows].unsqueeze(-3), sin[rows].unsqueeze(-3)))",
            ),
        ),
    ),
    Mistake(
        "rows-and-tokens-as-many-refused",
        "tables with just as many rows as tokens are refused",
        "time must be below the number of rows.",
        "test_half_split_equals_its_definition",
        change=(("if time > length:", "if time >= length:"),),
    ),
    Mistake(
        "width-unchecked",
        "tables of one column broadcast to every pair",
        "Broadcasting will complain by itself.",
        "test_tables_that_do_not_fit_are_refused",
        change=((" or 2 * cos.shape[1] != x.shape[3]", ""),),
    ),
    Mistake(
        "sin-unchecked",
        "sin is not checked against cos",
        "Both come from one call.",
        "test_tables_that_do_not_fit_are_refused",
        change=((" or cos.shape != sin.shape", ""),),
    ),
    Mistake(
        "tokens-past-the-tables-wrap",
        "tokens past the end of the tables start again at position 0",
        "A sequence never outgrows its tables.",
        "test_more_tokens_than_rows_are_refused",
        change=(
            (
                '            raise ValueError(f"{time} tokens need more rows than the tables\' {length}")\n',
                "            return torch.arange(time) % length\n",
            ),
        ),
    ),
    Mistake(
        "one-row-broadcasts",
        "tables that are too short are left to broadcasting, which takes a single row for all tokens",
        "Slicing cos[:time] is check enough.",
        "test_more_tokens_than_rows_are_refused",
        change=(("if time > length:", "if time > length > 1:"),),
    ),
    # --- the interleaved layout
    Mistake(
        "always-half-split",
        "interleaved is ignored",
        "There is only rotate_half.",
        "test_interleaved_turns_neighbours",
        change=((LAYOUT, "(2, -1), -2"),),
    ),
    Mistake(
        "interleaved-handed-back-in-halves",
        "neighbours are rotated, but come back with all first channels before all second ones",
        "cat((a, b)) puts them together again.",
        "test_interleaved_turns_neighbours",
        change=(("a * sin + b * cos), dim=pair)", "a * sin + b * cos), dim=-2)"),),
    ),
    Mistake(
        "interleaved-turned-the-other-way",
        "the interleaved layout rotates clockwise",
        "The sign is a convention of the layout.",
        "test_interleaved_turns_neighbours",
        change=((PAIRS, PAIRS + "    sin = -sin if interleaved else sin\n"),),
    ),
    Mistake(
        "interleaved-tables-in-halves",
        "in the interleaved layout the tables are repeated as for halves, so neighbours turn by different angles",
        "cat((cos, cos)) makes the tables as wide as x.",
        "test_interleaved_equals_its_definition",
        change=(
            (
                STACKED,
                "    (c, d), (s, t) = ((t, t) for t in (cos, sin))\n"
                "    if interleaved:\n"
                "        (c, d), (s, t) = (torch.cat([t, t], -1).unflatten(-1, (-1, 2)).unbind(-1) for t in (cos, sin))\n"
                "    turned = torch.stack((a * c - b * s, a * t + b * d), dim=pair)\n",
            ),
        ),
    ),
    Mistake(
        "interleaved-viewed-as-complex",
        "neighbours are viewed as complex numbers, which fails where the last dimension is not dense",
        "view_as_complex takes any tensor.",
        "test_interleaved_equals_its_definition",
        change=(
            (
                ROWS_OF,
                "if interleaved:\n        torch.view_as_complex(_widened(x).unflatten(-1, (-1, 2)))\n    "
                + ROWS_OF,
            ),
        ),
    ),
    Mistake(
        "interleaved-into-a-detached-buffer",
        "the interleaved result is written into a buffer through .data, so the graph does not see it",
        "out.data[..., 0::2] = … is a plain assignment.",
        "test_interleaved_gradient_is_the_rotation_back",
        change=(
            (STACKED, STACKED + "    turned = turned.detach() + 0 * a.sum() if interleaved else turned\n"),
        ),
    ),
    # --- positions
    Mistake(
        "positions-ignored",
        "positions are ignored: every call starts at 0",
        "The tables are in order already.",
        "test_positions_pick_rows_of_the_tables",
        change=((CHOSEN, "    return torch.arange(time) % length\n"),),
    ),
    Mistake(
        "interleaved-positions-ignored",
        "positions are used in the half-split layout only",
        "The interleaved branch was written first.",
        "test_positions_pick_rows_of_the_tables",
        change=(
            (
                "    rows = _rows(x, len(cos), positions)\n",
                "    rows = _rows(x, len(cos), positions)\n    if interleaved:\n        rows = torch.arange(x.shape[2]) % len(cos)\n",
            ),
        ),
    ),
    Mistake(
        "positions-shifted-by-one",
        "a token at position p is turned by the angle of p − 1",
        "Lengths and positions are the same thing.",
        "test_positions_pick_rows_of_the_tables",
        change=((CHOSEN, "    return (positions.long() - 1).clamp(min=0)\n"),),
    ),
    Mistake(
        "positions-as-an-offset",
        "only the first position is used, and the others are taken to follow it",
        "Positions are always consecutive.",
        "test_positions_pick_rows_of_the_tables",
        change=(
            (CHOSEN, "    return (positions[..., :1].long() + torch.arange(time)).clamp(max=length - 1)\n"),
        ),
    ),
    Mistake(
        "positions-relative-to-the-first",
        "positions are counted from the smallest of the call, since only distances matter",
        "A common shift changes no score.",
        "test_positions_pick_rows_of_the_tables",
        change=((CHOSEN, "    return positions.long() - positions.min()\n"),),
    ),
    Mistake(
        "positions-sorted",
        "positions are put in order first",
        "Time only runs forward.",
        "test_positions_pick_rows_of_the_tables",
        change=((CHOSEN, "    return positions.long().sort(dim=-1).values\n"),),
    ),
    Mistake(
        "chunk-takes-its-last-position",
        "all tokens of a call turn by its last position, which is right for one token at a time only",
        "With a cache there is one new token.",
        "test_positions_pick_rows_of_the_tables",
        change=((CHOSEN, "    return positions[..., -1:].long().expand_as(positions)\n"),),
    ),
    Mistake(
        "first-sequence-for-all",
        "the positions of the first sequence are used for all of the batch",
        "Positions are the same for the whole batch.",
        "test_each_sequence_has_its_own_positions",
        change=((CHOSEN, "    return positions.long() if positions.ndim == 1 else positions[0].long()\n"),),
    ),
    Mistake(
        "positions-by-head",
        "where there are as many sequences as heads, the positions of a sequence go to a head",
        "(batch, time, pairs) broadcasts against (batch, heads, time, pairs).",
        "test_each_sequence_has_its_own_positions",
        change=(
            (
                PICKED,
                "cos, sin = (t[rows] if len(x) == x.shape[1] else t[rows].unsqueeze(-3) for t in (cos, sin))",
            ),
        ),
    ),
    Mistake(
        "cut-where-positions-are-given",
        "with positions, as in decoding, the result is cut from the graph",
        "Positions are only given at inference.",
        "test_gradient_with_positions_is_the_rotation_back",
        change=(
            (PAIRS, PAIRS.replace("_widened(x)", "_widened(x if positions is None else x.detach() + 0 * x)")),
        ),
    ),
    Mistake(
        "positions-changed",
        "positions are changed in place, so that the caller's are others afterwards",
        "They are mine once they are passed in.",
        "test_positions_pick_rows_of_the_tables",
        change=((LONG, "return positions.add_(1).long() - 1"),),
    ),
    Mistake(
        "int64-positions-only",
        "positions in int32 are refused",
        "An index is int64.",
        "test_positions_pick_rows_of_the_tables",
        change=(
            (
                LONG,
                "if positions.dtype != torch.int64:\n        raise ValueError(f'{positions.dtype}')\n    "
                + LONG,
            ),
        ),
    ),
    Mistake(
        "positions-by-time-and-batch",
        "where there are as many sequences as tokens, positions are read as (time, batch)",
        "Whichever way round it fits.",
        "test_each_sequence_has_its_own_positions",
        change=((LONG, "return (positions.T if positions.shape == (time, batch) else positions).long()"),),
    ),
    Mistake(
        "last-row-refused",
        "the last row of the tables is refused as a position",
        "Positions end before length − 1.",
        "test_positions_pick_rows_of_the_tables",
        change=((BOUNDS, BOUNDS.replace(">= length", ">= length - 1")),),
    ),
    Mistake(
        "negative-positions-wrap",
        "a negative position counts from the end of the tables",
        "Indexing will complain by itself.",
        "test_positions_outside_the_tables_are_refused",
        change=((OUTSIDE, "((positions < -length) | (positions >= length)).any()"),),
    ),
    Mistake(
        "positions-clamped",
        "positions past the end are moved to the last row",
        "Clamping keeps indexing safe.",
        "test_positions_outside_the_tables_are_refused",
        change=(
            (OUTSIDE, "(positions < 0).any()"),
            (CHOSEN, "    return positions.long().clamp(max=length - 1)\n"),
        ),
    ),
    Mistake(
        "positions-wrap",
        "positions past the end start again at row 0",
        "The tables are a ring.",
        "test_positions_outside_the_tables_are_refused",
        change=((OUTSIDE, "(positions < 0).any()"), (CHOSEN, "    return positions.long() % length\n")),
    ),
    Mistake(
        "positions-of-any-shape",
        "positions of another shape are left to broadcasting: one of them serves many tokens",
        "Broadcasting will complain by itself.",
        "test_positions_of_another_shape_are_refused",
        change=(("if positions.shape not in ((time,), (batch, time)):", "if positions.ndim > 2:"),),
    ),
    Mistake(
        "one-row-of-positions-broadcasts",
        "positions (1, time) serve a batch of any size",
        "A dimension of 1 broadcasts.",
        "test_positions_of_another_shape_are_refused",
        change=(("not in ((time,), (batch, time)):", "not in ((time,), (batch, time), (1, time)):"),),
    ),
    Mistake(
        "positions-in-int16",
        "positions are kept in 16 bits, which end at 32,767",
        "No text is longer than that.",
        "test_large_positions_are_exact",
        change=(("return positions.long()", "return positions.to(torch.int16).long() % length"),),
    ),
    Mistake(
        "positions-in-the-dtype-of-x",
        "positions pass through the dtype of x, so that bfloat16 confuses those beyond 256",
        "Everything that meets x has to have its dtype.",
        "test_large_positions_are_exact",
        change=(("return positions.long()", "return positions.to(x.dtype).long()"),),
    ),
)

HALF = "rotating in half precision rounds three times where one would do, which the contract leaves open"
EQUIVALENT = (
    ("x.float() if x.itemsize < 4 else x", "x if x.itemsize < 4 else x", HALF),
    ("4", "3", HALF),
    ("x.itemsize < 4", "x.itemsize <= 4", "float32.float() is float32"),
    ("4", "5", "float32.float() is float32"),
    (
        "torch.arange(0, head_dim, 2, dtype=torch.float64)",
        "torch.arange(0, head_dim, 2)",
        "exponents in float32, which the contract allows",
    ),
    (
        "torch.arange(length, dtype=torch.float64)",
        "torch.arange(length)",
        "whole numbers times float64 are float64",
    ),
    ("2", "1", "a head_dim of 1 is odd, and refused for that"),
)
"""Mutants that do the same: what stood there, what stands there, and why nothing can tell."""
