"""Numbers of an engine for Prometheus, collected when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .engine import Engine
from .stats import Stats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class EngineCollector(Collector):
    """Sums over all sessions since the start, and the state of this moment."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        yield from self._state()
        yield from _work(self._engine.stats())

    def _state(self) -> Iterator[Metric]:
        engine, live = self._engine, self._engine.active
        away = sum(stream.detached_s is not None for stream in live)
        sessions = GaugeMetricFamily("dragoman_sessions", "Sessions that have not ended.", labels=["state"])
        sessions.add_metric(["connected"], len(live) - away)
        sessions.add_metric(["detached"], away)
        yield sessions
        yield GaugeMetricFamily("dragoman_sessions_limit", "Most sessions at once.", engine.options.server.max_sessions)
        yield CounterMetricFamily("dragoman_sessions_opened", "Sessions opened.", engine.opened_count)
        yield CounterMetricFamily("dragoman_sessions_refused", "Sessions refused for want of room.", engine.refused_count)
        lag_ms = max((stream.lag_ms for stream in live), default=0)
        yield GaugeMetricFamily("dragoman_lag_seconds", "Audio received and not yet processed, of the worst session.", lag_ms / 1000)
        yield GaugeMetricFamily("dragoman_behind_seconds", "Behind real time, of the worst live session.", engine.behind_ms() / 1000)
        yield GaugeMetricFamily("dragoman_economy_level", "0 as configured to 4 refusing new sessions.", engine.gauge.level)


def _work(stats: Stats) -> Iterator[Metric]:
    yield CounterMetricFamily("dragoman_audio_seconds", "Audio received by sessions.", stats.audio_ms / 1000)
    yield CounterMetricFamily("dragoman_compute_seconds", "Work done for it.", stats.compute_s)
    yield GaugeMetricFamily("dragoman_real_time_factor", "Work for each second of audio since the start.", stats.real_time_factor)
    yield CounterMetricFamily("dragoman_dropped_seconds", "Audio that clients reported as lost.", stats.dropped_ms / 1000)
    yield CounterMetricFamily("dragoman_segments", "Segments of speech.", stats.segments)
    yield CounterMetricFamily("dragoman_hypotheses", "Hypotheses, translations included.", stats.hypotheses)
    yield CounterMetricFamily("dragoman_forwards", "Forwards of the decoder for them.", stats.forwards)
    tokens = CounterMetricFamily("dragoman_tokens", "Tokens by what became of them.", labels=["kind"])
    counts = {
        "committed": stats.committed_tokens,
        "redrafted": stats.redrafted_tokens,
        "agreed": stats.agreed_tokens,
        "drafted": stats.drafted_tokens,
        "accepted": stats.accepted_tokens,
    }
    for kind, count in counts.items():
        tokens.add_metric([kind], count)
    yield tokens
    drafts = CounterMetricFamily("dragoman_draft_tokens", "Tokens guessed ahead.", labels=["task", "source", "result"])
    stopped = CounterMetricFamily("dragoman_drafts_stopped", "How often drafts cost more than they saved.", labels=["task", "source"])
    for (task, source), counts in stats.drafts.items():
        drafts.add_metric([task, source, "accepted"], counts.accepted_tokens)
        drafts.add_metric([task, source, "rejected"], counts.offered_tokens - counts.accepted_tokens)
        stopped.add_metric([task, source], counts.stopped)
    yield drafts
    yield stopped
    # Each forward decides one token by itself; the drafts it confirmed come on top.
    per_forward = (stats.forwards + stats.agreed_tokens + stats.accepted_tokens) / stats.forwards if stats.forwards else 0.0
    yield GaugeMetricFamily("dragoman_tokens_per_forward", "Tokens that one forward of the decoder decided, drafts included.", per_forward)
    guards = CounterMetricFamily("dragoman_guard_hits", "How often a guard stepped in.", labels=["guard"])
    for name, count in asdict(stats.guards).items():
        guards.add_metric([name], count)
    yield guards


def exposition(engine: Engine) -> bytes:
    """All metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(EngineCollector(engine))
    return generate_latest(registry)
