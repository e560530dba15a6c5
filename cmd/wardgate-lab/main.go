// Command wardgate-lab is the laboratory's tool: the demo of `make demo`, and what the benchmark
// targets need. It is not shipped.
//
// Exit codes: 0 all went as it must; 1 it did not, and standard error says why; 2 wrong usage;
// 130 interrupted (everything is cleared up).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	os.Exit(run())
}

func run() int {
	// The first signal cancels, and what was made is cleared up; signals during the clearing
	// up are swallowed, so that an impatient second Ctrl-C leaves nothing behind either.
	ctx, cancel := context.WithCancelCause(context.Background())
	sigs := make(chan os.Signal, 4)
	signal.Notify(sigs, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		for s := range sigs {
			cancel(fmt.Errorf("%w by %v", errInterrupted, s))
		}
	}()
	root := &cobra.Command{
		Use:           "wardgate-lab",
		Short:         "Wardgate's laboratory: demo and benchmarks in network namespaces",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(demoCommand(), benchJSONCommand(), benchNetCommand(), benchReportCommand(), benchSPCommand(), benchIKECommand(), ikeResponderCommand(), floodCommand(), labCACommand())
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(context.Cause(ctx), errInterrupted):
		fmt.Fprintf(os.Stderr, "wardgate-lab: %v; everything has been cleared up\n", context.Cause(ctx))
		return 130
	case errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "wardgate-lab: %v\n", err)
		return 2
	}
	fmt.Fprintf(os.Stderr, "wardgate-lab: %v\n", err)
	return 1
}

var (
	errInterrupted = errors.New("interrupted")
	errUsage       = errors.New("usage")
)
