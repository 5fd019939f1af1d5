"""Shows the measured errors at the end of a run."""


def pytest_terminal_summary(terminalreporter):
    rows = [
        (report.nodeid.partition("[")[2].rstrip("]"), value)
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, value in report.user_properties
        if name == "parity"
    ]
    if rows:
        terminalreporter.section("largest difference to PyTorch")
        width = max(len(model) for model, _ in rows)
        for model, value in rows:
            terminalreporter.write_line(f"{model:<{width}}  {value}")
