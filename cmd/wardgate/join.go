package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"wardgate/router/control"
)

// maxJoinWait is the longest that the daemon lets anybody wait for the first connection.
const maxJoinWait = 5 * time.Minute

// joinTime bounds joining itself: a slow token, a slow network and many services.
const joinTime = 5 * time.Minute

// joinAnswer is what `join --json` prints.
type joinAnswer struct {
	Steps []control.JoinStep `json:"steps"`
	Error *control.Error     `json:"error,omitempty"`
}

func (c *cli) joinCommand() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "join [URL]",
		Short: "Take this router into the service provider's network",
		Long: "Take a router that has nothing but its device certificate to its service certificates, its\n" +
			"policy and its first connection, and show each step. URL is the address of the service\n" +
			"provider's centre, https://HOST[:PORT]; it may be left out where the configuration names it,\n" +
			"or where this router has joined before. What [sp] anchors of the configuration does not know\n" +
			"is not trusted. From then on everything is kept up to date by itself.\n\n" +
			"The exit status is 0 when the router has joined, also when no connection is up yet: the\n" +
			"partner may not have joined. Joining can be repeated at any time.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return badUsage("see: "+cmd.CommandPath()+" --help", "%s: unexpected argument %q", path(cmd), args[1])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if wait < 0 || wait > maxJoinWait {
				return badUsage("the default is 30s", "--wait: expected 0s to %v, came %v", maxJoinWait, wait)
			}
			d, err := c.dial(c.socketPath())
			if err != nil {
				return err
			}
			req := control.JoinRequest{Wait: wait.String()}
			if len(args) == 1 {
				req.URL = args[0]
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), joinTime+wait)
			defer cancel()
			return c.join(ctx, d, req)
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to wait for the first connection, at most 5m; 0s: not at all")
	return cmd
}

func (c *cli) join(ctx context.Context, d daemon, req control.JoinRequest) error {
	v := joinAnswer{Steps: []control.JoinStep{}}
	told, connected := false, false // what failed has been said; a connection is up
	var broken error                // standard output
	err := d.Join(ctx, req, func(s control.JoinStep) {
		v.Steps = append(v.Steps, s)
		if s.Name == control.StepConnection {
			connected = s.Error == nil
		} else {
			told = told || s.Error != nil
		}
		if !c.json && broken == nil {
			broken = c.answer(nil, func(p *printer) { printStep(p, &s) })
		}
	})
	switch {
	case broken != nil:
		return broken
	case err == nil && c.json:
		return c.writeJSON(v)
	case err == nil:
		return c.answer(nil, func(p *printer) {
			if connected {
				p.line("This router has joined.")
			} else {
				p.line("This router has joined. Connections come up when they are needed.")
			}
		})
	case c.json:
		var code int
		v.Error, code = c.explainFailure(err)
		if err := c.writeJSON(v); err != nil {
			return err
		}
		return silent(code)
	case told:
		_, code := c.explainFailure(err)
		return silent(code)
	}
	return err
}

// stepWords are what the steps are called.
var stepWords = map[string]string{
	control.StepDevice:     "device certificate",
	control.StepReach:      "centre",
	control.StepClock:      "clock",
	control.StepPolicy:     "policy",
	control.StepServiceKey: "service key",
	control.StepEnrolment:  "certificate",
	control.StepReport:     "state reported",
	control.StepConnection: "first connection",
}

func printStep(p *printer, s *control.JoinStep) {
	name := stepWords[s.Name]
	if name == "" {
		name = plain(s.Name)
	}
	if s.Service != "" {
		name += " of " + plain(s.Service)
	}
	if s.Error == nil {
		if s.Text != "" {
			name += ": " + plain(s.Text)
		}
		p.line("%s %s", p.style(green, "✓"), name)
		return
	}
	mark := p.style(red, "✗")
	if s.Name == control.StepConnection {
		mark = p.style(yellow, "…") // no failure of joining
	}
	p.line("%s %s: %s", mark, name, plain(lowerFirst(s.Error.Title)))
	if s.Error.Detail != "" {
		p.line("    %s", plain(s.Error.Detail))
	}
	if s.Error.Hint != "" {
		p.line("    → %s", plain(s.Error.Hint))
	}
}
