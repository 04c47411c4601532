"""What pytest needs to run transformers' suites: their markers, the record of skips, and a table of the results."""

from collections import Counter, defaultdict

import pytest

from tests.conformance import skips
from tests.conformance.transformers_suites import markers


def pytest_configure(config):
    # Before any suite is imported, hence no import of `suites` above.
    for name in markers():
        config.addinivalue_line("markers", f"{name}: of transformers' suites")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Gives a skip the reason of its table, and fails a test that skips itself without being listed."""
    report = yield
    listed_reason = getattr(item.cls, "listed_reason", None)  # of `Conformance`
    if report.skipped and listed_reason:
        reason = listed_reason(item.name)
        if reason is None:
            report.outcome = "failed"
            report.longrepr = f"{item.name} skips itself without being listed in `skips`: {report.longrepr[2]}"
        else:
            report.longrepr = (skips.__file__, 1, f"Skipped: {reason}")
    return report


def pytest_terminal_summary(terminalreporter):
    """Prints passed, skipped and failed tests of every conformance class, and the reasons of the skips."""
    tests, reasons = {}, defaultdict(Counter)
    for outcome in ("passed", "skipped", "failed"):  # the last one stands: a test may hold subtests of every outcome
        for report in terminalreporter.getreports(outcome):
            if "/conformance/" in report.nodeid and report.nodeid.count("::") == 2:
                tests[report.nodeid] = outcome
                if outcome == "skipped":
                    reasons[report.longrepr[2].removeprefix("Skipped: ")].update([report.nodeid])
    if not tests:
        return
    classes = defaultdict(Counter)
    for nodeid, outcome in tests.items():
        classes[nodeid.split("::")[1]][outcome] += 1
    write = terminalreporter.write_line
    terminalreporter.section("conformance with transformers' suites")
    write(f"{'class':<45}{'passed':>8}{'skipped':>9}{'failed':>8}")
    for name, counts in classes.items():
        write(f"{name:<45}{counts['passed']:>8}{counts['skipped']:>9}{counts['failed']:>8}")
    for reason, nodeids in sorted(reasons.items(), key=lambda entry: -len(entry[1])):
        write(f"{len(nodeids):>5} skipped: {reason}")
