from isthmus.core.gates import GateReading


def test_a_gate_is_open_above_its_threshold_and_closed_on_it_below_it_and_unread():
    reading = GateReading((0.5, 0.0, -1.0, None))
    assert reading.is_open == (True, False, False, False)
    assert reading.n_open == 1
