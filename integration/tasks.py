"""Workers and their doorbells: dramatiq rings, PostgreSQL keeps. Nothing depends on a message of the broker.

A lost ring costs a second, for the sweeper finds what is due; a ring too many finds nothing to do.
"""

import logging
import threading
from typing import Any

import dramatiq
from django import db
from django.conf import settings
from dramatiq.brokers.stub import StubBroker

from common.process import Context
from integration import delivery

logger = logging.getLogger(__name__)

QUEUE = "outbox"
# Set when this process must end: a drain stops between two messages.
stopping = threading.Event()

rings_failed = 0
"""How many rings this process could not get to the broker."""


class DjangoConnections(dramatiq.Middleware):
    """A worker thread gives its database connection back after each task."""

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
    ) -> None:
        db.connections.close_all()

    after_skip_message = after_process_message

    def before_worker_thread_shutdown(self, broker: Any, thread: Any) -> None:
        db.connections.close_all()


def make_broker(url: str) -> dramatiq.Broker:
    """The broker that ORDERLY_BROKER names: `postgres` (our own database), `redis://…`, `amqp://…`, or `stub`.

    Its middleware is ours alone: retries and time limits are the outbox's business. Raises ValueError.
    """
    middleware: list[dramatiq.Middleware] = [DjangoConnections()]
    if url == "postgres":
        return _postgres_broker(middleware)
    if url.startswith(("redis://", "rediss://")):
        from dramatiq.brokers.redis import RedisBroker

        return RedisBroker(url=url, middleware=middleware, socket_timeout=5, socket_connect_timeout=2)
    if url.startswith(("amqp://", "amqps://")):
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        return RabbitmqBroker(url=url, middleware=middleware)
    if url == "stub":
        return StubBroker(middleware=middleware)
    raise ValueError(f"ORDERLY_BROKER must be postgres, redis://…, amqp://… or stub, not {url!r}.")


def _postgres_broker(middleware: list[dramatiq.Middleware]) -> dramatiq.Broker:
    """dramatiq-postgres on Django's database. Its tables come with a migration of ours.

    Workers get a small pool of their own, opened in `main`. A ring is one statement on the connection that has
    just committed: it must neither open another connection nor try for minutes when something is wrong.
    """
    from dramatiq_postgres import PostgresBroker
    from dramatiq_postgres.broker import QUERIES
    from psycopg_pool import ConnectionPool

    class Broker(PostgresBroker):
        def enqueue(self, message: dramatiq.Message, *, delay: int | None = None) -> dramatiq.Message:
            body = message.encode().decode()
            with db.connection.cursor() as cursor:
                cursor.execute(QUERIES.ENQUEUE, [message.queue_name, message.message_id, body, delay or 0])
            return message

    def parameters() -> dict[str, Any]:
        ours = db.connection.get_connection_params()
        wanted = ("dbname", "user", "password", "host", "port", "sslmode", "sslrootcert", "connect_timeout")
        return {k: ours[k] for k in wanted if ours.get(k)} | {"application_name": "orderly broker"}

    pool: ConnectionPool = ConnectionPool(
        kwargs=parameters,
        min_size=0,
        max_size=8,
        timeout=5.0,
        open=False,
        check=ConnectionPool.check_connection,
    )
    return Broker(pool=pool, results=False, middleware=middleware, purge_maxage="1 day")


broker = make_broker(settings.ORDERLY_BROKER)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=QUEUE, broker=broker)
def drain(destination_id: int) -> None:
    """Send what is due to a destination."""
    _, more = delivery.drain(destination_id, stopping)
    if more:
        ring(destination_id)


def ring(destination_id: int) -> bool:
    """Nudge a worker; False when the broker could not be told, which is counted and logged, never raised."""
    global rings_failed
    try:
        drain.send(destination_id)
    except Exception as error:
        rings_failed += 1
        logger.warning(
            "a worker could not be rung (%s); the sweeper will find what is due", type(error).__name__
        )
        return False
    return True


def _free_leases() -> None:
    """What the worker before us held when it was killed; the sweeper does the same, so a fault stops nothing."""
    try:
        delivery.free_dead_leases()
    except db.Error as error:
        logger.warning("leases of dead workers could not be freed (%s)", type(error).__name__)
    finally:
        db.connections.close_all()


def main(ctx: Context) -> None:
    """Run the workers until the context says stop; what is being sent is sent to its end first."""
    pool = getattr(broker, "pool", None)
    if pool is not None:
        pool.open()
    _free_leases()
    worker = dramatiq.Worker(broker, queues={QUEUE}, worker_threads=settings.ORDERLY_WORKER_THREADS)
    worker.start()
    try:
        ctx.ready()
        while not ctx.stopping.wait(1.0):
            ctx.beat()
            delivery.KEPT.close_idle()
    finally:
        stopping.set()
        worker.stop()
        delivery.KEPT.close_idle(every=True)
        broker.close()
        if pool is not None:
            pool.close()
