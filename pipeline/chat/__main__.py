"""`python -m pipeline.chat`."""

from pipeline.chat.terminal_chat import main

if __name__ == "__main__":
    main()
