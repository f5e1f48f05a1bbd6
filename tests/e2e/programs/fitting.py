"""What the script imports."""


def model(data: str, lr: float) -> str:
    return f"{data} fitted with {lr}"
