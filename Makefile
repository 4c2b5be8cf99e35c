# A thin shell over tasks.py, which does the work and runs without make too: python tasks.py TARGET
# Arguments for a target: make test ARGS="-k config", make bench ARGS=--quick, make course ARGS=--slow

TARGETS := setup quickstart test check bench kills course docs notebooks format lint type-check clean help
.PHONY: $(TARGETS)
.DEFAULT_GOAL := help

# Any Python 3 can run tasks.py; that file finds one that can run Tiny Audio.
$(TARGETS):
	@for python in "$$PYTHON" python3 python3.13 python3.12 python3.11 python; do \
		if [ -n "$$python" ] && "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 7))' >/dev/null 2>&1; then \
			exec "$$python" tasks.py $@ $(ARGS); \
		fi; \
	done; \
	echo "error: no Python 3 found. Tiny Audio needs Python 3.11, 3.12 or 3.13: https://www.python.org/downloads/ or PYTHON=/path/to/python3.12 make $@" >&2; \
	exit 2
