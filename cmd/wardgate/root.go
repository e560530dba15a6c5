package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardgate/router/control"
)

// cli is one run of the command line with all that it needs from outside.
type cli struct {
	in       io.Reader
	out, err io.Writer
	now      func() time.Time
	dial     func(socket string) (daemon, error)
	getenv   func(string) string
	terminal bool // standard output is one

	// Flags of every command.
	socket string
	json   bool

	started bool // the command line made sense; what fails now is no usage error
}

const socketVariable = "WARDGATE_SOCKET"

// requestTime bounds every question to the daemon but `up`.
const requestTime = 60 * time.Second

// run executes one command line and returns the exit code.
func (c *cli) run(args []string) int {
	root := c.rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(context.Background())
	if err == nil {
		return exitOK
	}
	var s silent
	if !c.started && !errors.As(err, &s) {
		err = c.usage(root, args, err)
	}
	return c.report(err)
}

// rootCommand makes the tree of commands.
func (c *cli) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "wardgate",
		Short: "Look after this facility's VPN router",
		Long: "wardgate asks wardgated, the VPN router of this facility, what it does, and tells it what\n" +
			"to do. It also checks policy files and audit records, and looks after the token.",
		SilenceErrors: true, SilenceUsage: true, DisableSuggestions: true,
		SuggestionsMinimumDistance: 2,
		CompletionOptions:          cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetHelpCommand(helpCommand(root))
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	flags := root.PersistentFlags()
	flags.BoolVar(&c.json, "json", false, "print JSON, also of errors")
	flags.StringVar(&c.socket, "socket", "", "control socket of wardgated, a `path` (default $"+socketVariable+", else "+control.DefaultSocket+")")

	root.AddCommand(
		c.joinCommand(),
		c.statusCommand(),
		c.connectionsCommand(),
		c.upCommand(),
		c.downCommand(),
		c.explainCommand(),
		c.redirectCommand(),
		c.ppkCommand(),
		c.policyCommand(),
		c.auditCommand(),
		c.countersCommand(),
		c.versionCommand(),
	)
	root.AddCommand(otherCommands()...)

	c.prepare(root)
	return root
}

// otherCommands are the commands that live in files of their own and know nothing of cli: `token`
// is registered here. They print to cmd.OutOrStdout, look up --json with cmd.Flags, and return
// errors, which root reports (failures.go) and turns into the exit code.
func otherCommands() []*cobra.Command { return []*cobra.Command{tokenCommand()} }

// prepare makes every command note that it was started, and every group of commands complain
// about a name that it does not have (cobra prints its help and calls it a success).
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
	if cmd.HasParent() && cmd.HasSubCommands() && cmd.Run == nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			came := "nothing"
			if len(args) > 0 {
				came = fmt.Sprintf("%q", args[0])
			}
			return badUsage("see: "+cmd.CommandPath()+" --help", "%s: expected one of %s, came %s", path(cmd), strings.Join(names(cmd), ", "), came)
		}
	}
}

func names(cmd *cobra.Command) []string {
	var out []string
	for _, sub := range cmd.Commands() {
		if !sub.Hidden && sub.Name() != "help" {
			out = append(out, sub.Name())
		}
	}
	return out
}

// usage makes a usage error of what cobra says before a command starts.
func (c *cli) usage(root *cobra.Command, args []string, err error) error {
	// Flags may not have been parsed yet.
	c.json = c.json || slices.Contains(args, "--json")
	var u *usageError
	if errors.As(err, &u) {
		return err
	}
	cmd, rest, ferr := root.Find(args)
	if ferr != nil || cmd == root && len(rest) > 0 {
		cmd = root
		if i := slices.IndexFunc(rest, func(a string) bool { return !strings.HasPrefix(a, "-") }); i >= 0 && ferr != nil {
			hint := "see: wardgate --help"
			if s := root.SuggestionsFor(rest[i]); len(s) > 0 {
				hint = "did you mean: wardgate " + strings.Join(s, ", wardgate ")
			}
			return &usageError{fmt.Sprintf("there is no command %q", rest[i]), hint}
		}
	}
	return &usageError{err.Error(), "see: " + cmd.CommandPath() + " --help"}
}

// socketPath is the control socket: flag, environment, default.
func (c *cli) socketPath() string {
	if c.socket != "" {
		return c.socket
	}
	if s := c.getenv(socketVariable); s != "" {
		return s
	}
	return control.DefaultSocket
}

// daemon returns the daemon to ask, and a context for the question.
func (c *cli) daemon(cmd *cobra.Command) (daemon, context.Context, context.CancelFunc, error) {
	d, err := c.dial(c.socketPath())
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), requestTime)
	return d, ctx, cancel, nil
}

// ask makes one question of the daemon. A daemon that answers with nothing is an error.
func ask[T any](c *cli, cmd *cobra.Command, question func(daemon, context.Context) (*T, error)) (*T, error) {
	d, ctx, cancel, err := c.daemon(cmd)
	if err != nil {
		return nil, err
	}
	defer cancel()
	v, err := question(d, ctx)
	if err != nil {
		return nil, err
	}
	if v == nil {
		return nil, failed(control.KindInternal, "empty-answer", "the daemon answered with nothing",
			"the command line and the daemon may be of different versions: wardgate version, wardgate status", nil)
	}
	return v, nil
}

// path is a command's name below wardgate, such as "policy check".
func path(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}

// helpCommand is `wardgate help`. Cobra's own ends with success for a command that there is not.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:    "help [COMMAND]",
		Short:  "Explain a command",
		Hidden: true, // every help text ends with how to get more of it
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return badUsage("see: wardgate --help", "there is no command %q", strings.Join(args, " "))
			}
			return cmd.Help()
		},
	}
}

// exactly wants the arguments that a command's usage line names.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return badUsage("see: "+cmd.CommandPath()+" --help", "%s: expected %s, came nothing", path(cmd), names[len(args)])
		case len(args) > len(names):
			return badUsage("see: "+cmd.CommandPath()+" --help", "%s: unexpected argument %q", path(cmd), args[len(names)])
		}
		return nil
	}
}
