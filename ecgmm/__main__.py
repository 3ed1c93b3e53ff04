"`python -m ecgmm` is the command `ecgmm`."

from ecgmm.settings import main

if __name__ == "__main__":
    main()
