"""The way back from the driver's thread."""

import asyncio
import threading

from chatgrpc.adapters.cassandra.handback import Handback


async def test_what_many_threads_hand_over_comes_in_the_order_of_each() -> None:
    handback = Handback(asyncio.get_running_loop())
    came: list[tuple[int, int]] = []

    def hand_over(thread: int) -> None:
        for number in range(500):
            handback.put(came.append, (thread, number))

    await asyncio.gather(*(asyncio.to_thread(hand_over, thread) for thread in range(4)))
    await asyncio.sleep(0)
    assert len(came) == 2000
    for thread in range(4):
        assert [number for sender, number in came if sender == thread] == list(range(500))


async def test_a_callback_that_raises_keeps_nothing_from_others() -> None:
    loop = asyncio.get_running_loop()
    defects: list[object] = []
    loop.set_exception_handler(lambda _, context: defects.append(context["exception"]))
    handback = Handback(loop)
    done = asyncio.Event()

    def hand_over() -> None:
        handback.put(divmod, 1, 0)
        handback.put(done.set)

    handing_over = threading.Thread(target=hand_over)
    handing_over.start()
    handing_over.join()
    async with asyncio.timeout(60):
        await done.wait()
    assert [type(defect) for defect in defects] == [ZeroDivisionError]
