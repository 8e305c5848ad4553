"""Never stops being imported."""

while True:
    pass
