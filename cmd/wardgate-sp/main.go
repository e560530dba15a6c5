// Command wardgate-sp is the service provider's centre: it keeps the registry of members, devices,
// services and contracts, enrols devices, makes and signs their policies and hands them out.
//
// Its rules are those of wardgate: answers go to standard output, complaints to standard error, and say
// what was expected, what came and what to do; with --json answers are JSON. Exit status: 0 done, 1
// something failed, 2 the command line or the configuration makes no sense, 3 understood and refused.
// docs/sp.md describes it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"wardgate/sp"
	"wardgate/sp/operator"
	"wardgate/sp/registry"
)

// version is set by the linker (-X main.version=…); otherwise the build information tells.
var version string

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
	exitRefused = 3
)

var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// cli is one run of the command line.
type cli struct {
	config string
	json   bool

	api, apiCert, apiKey, apiAnchors string // a running centre instead of the database

	started bool // the command line made sense
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := &cli{}
	root := c.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "wardgate-sp: %v\n", err)
	switch {
	case !c.started, errors.Is(err, errUsage), errors.Is(err, sp.ErrConfig), errors.Is(err, operator.ErrRequest):
		return exitUsage
	case errors.Is(err, registry.ErrRefused), errors.Is(err, operator.ErrConflict), errors.Is(err, operator.ErrNotFound), errors.Is(err, operator.ErrInTheWay), errors.Is(err, operator.ErrDenied), errors.Is(err, sp.ErrUnfinished):
		return exitRefused
	}
	return exitFailure
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "wardgate-sp",
		Short: "The service provider's centre",
		Long: "wardgate-sp keeps who is a member of which VPN service and who may do what with whom, enrols\n" +
			"devices, and hands them their signed policies.",
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	f := root.PersistentFlags()
	f.StringVar(&c.config, "config", sp.DefaultConfig, "configuration `file`")
	f.BoolVar(&c.json, "json", false, "print JSON")
	f.StringVar(&c.api, "api", "", "work over the API of a running centre: its socket, or `https://HOST:PORT`")
	f.StringVar(&c.apiCert, "api-cert", "", "with https: PEM `file` with your certificate")
	f.StringVar(&c.apiKey, "api-key", "", "with https: PEM `file` with its key")
	f.StringVar(&c.apiAnchors, "api-anchors", "", "with https: PEM `file` with the roots of the centre's certificate")
	root.AddCommand(
		c.serveCommand(), c.initCommand(), c.planCommand(), c.applyCommand(), c.exportCommand(),
		c.memberCommand(), c.deviceCommand(), c.serviceCommand(), c.contractCommand(),
		c.historyCommand(), c.recordCommand(), c.crlCommand(), c.healthCommand(), c.versionCommand(),
	)
	c.prepare(root)
	return root
}

// prepare makes every command note that it was started, and every group complain about a name that it
// does not have (cobra prints its help and calls it a success).
func (c *cli) prepare(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		c.prepare(sub)
	}
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			c.started = true
			return run(cmd, args)
		}
		return
	}
	if cmd.HasParent() && cmd.HasSubCommands() {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			var names []string
			for _, sub := range cmd.Commands() {
				names = append(names, sub.Name())
			}
			return fmt.Errorf("%w: %s: expected one of %s, came %q", errUsage, cmd.CommandPath(), strings.Join(names, ", "), strings.Join(args, " "))
		}
	}
}

// open opens the centre that the configuration names.
func (c *cli) open(ctx context.Context, o sp.Options) (*sp.Centre, error) {
	cfg, err := sp.LoadConfig(c.config)
	if err != nil {
		return nil, err
	}
	o.Config = cfg
	return sp.Open(ctx, o)
}

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return c.print(cmd, map[string]string{"version": versionText()}, "wardgate-sp "+versionText()+"\n")
	}}
}

func versionText() string {
	if version != "" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, s := range bi.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return "dev-" + s.Value[:12]
			}
		}
	}
	return "dev"
}
