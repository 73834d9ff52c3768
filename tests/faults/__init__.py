"""Faults that training meets, and what becomes of each.

Survived: training goes on and ends near where it would have. Skipped: the step changes nothing
but a counter. Flagged: telemetry says so. Refused: an error says what to do instead.

| fault | what happens | test |
|---|---|---|
| one step of NaN gradients | skipped | test_fault_steps.py::test_bad_steps_are_skipped |
| a hundred steps of NaN gradients | skipped | test_fault_steps.py::test_bad_steps_are_skipped |
| an infinite gradient in one leaf | skipped | test_fault_steps.py::test_bad_steps_are_skipped |
| labels out of range (a loss of NaN) | skipped | test_fault_steps.py::test_bad_steps_are_skipped |
| a spike of loss and gradient | survived | test_fault_steps.py::test_training_survives |
| a dead layer, its gradients zero | survived | test_fault_steps.py::test_a_dead_layer_stays |
| identical examples, no noise | survived | test_fault_steps.py::test_training_survives |
| batches of one example | survived | test_fault_steps.py::test_training_survives |
| a learning rate of 1e-12 | survived | test_fault_steps.py::test_rates_out_of_reason |
| a learning rate of 1e4 | survived | test_fault_steps.py::test_rates_out_of_reason |
| a frozen layer, by partition or masked | survived | test_fault_leaves.py::test_a_frozen_layer |
| empty, missing and scalar leaves | survived | test_fault_leaves.py::test_odd_leaves |
| float32 and bfloat16 leaves together | survived | test_fault_leaves.py::test_odd_leaves |
| two thousand leaves | survived | test_fault_leaves.py::test_two_thousand_leaves |
| counters near 2^31 | survived | test_fault_limits.py::test_counters_saturate |
| 200,000 steps in one scan | survived | test_fault_limits.py::test_a_very_long_scan |
| an ensemble under vmap, one member bad | skipped | test_fault_limits.py::test_an_ensemble |
| a restart in mid-hand-over | survived | test_fault_limits.py::test_a_restart_in_mid_hand_over |
| NaN gradients in mid-hand-over | skipped | test_fault_limits.py::test_nan_in_mid_hand_over |
| a state with masked parts, saved | survived | test_fault_checkpoints.py::test_saved_and_restored |
| a state with arrays of no size, in Orbax | refused | test_fault_checkpoints.py::test_arrays_of_no_size |
| a gradient too large to square | skipped | test_overflow.py::test_a_gradient_too_large_to_square_is_skipped_and_the_stream_recovers |
| a transform of another natural size | survived | test_handover.py::test_the_old_size_stays_through_every_hand_over_and_after_it |
| a transform that turns uphill | flagged | test_descent.py::test_a_transform_that_turns_uphill_is_flagged |
| an optimizer given as a transform | refused | test_uphill.py::test_an_optimizer_as_a_transform_is_refused |
| gradients of another shape | refused | test_wrong_calls.py::test_gradients_of_another_shape_are_refused |
| a loss that is no scalar | refused | test_wrong_calls.py::test_a_loss_is_a_scalar |
"""  # noqa: E501

OUTCOMES = ("survived", "skipped", "flagged", "refused")
_LINES = [line for line in (__doc__ or "").splitlines() if line.startswith("|")]
# (fault, what happens, file::test)
ROWS = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in _LINES[2:]]
