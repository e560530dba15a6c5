package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardgate/sp"
	"wardgate/sp/operator"
)

// print writes an answer: JSON, or text.
func (c *cli) print(cmd *cobra.Command, v any, text string) error {
	if !c.json {
		_, err := io.WriteString(cmd.OutOrStdout(), text)
		return err
	}
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// who is named in the record for what the command line does.
func who() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}

func (c *cli) serveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "serve", Short: "Serve devices, until SIGTERM", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			centre, err := c.open(cmd.Context(), sp.Options{Log: slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), nil))})
			if err != nil {
				return err
			}
			defer func() { _ = centre.Close() }() // every write is durable when its method returns
			l, err := centre.Listen(cmd.Context())
			if err != nil {
				return err
			}
			return centre.Serve(cmd.Context(), l)
		},
	}
}

func (c *cli) initCommand() *cobra.Command {
	var o sp.InitOptions
	var anchors, cas string
	var services []string
	cmd := &cobra.Command{
		Use: "init DIR", Short: "Make a centre's folder: configuration, keys and certificates in files", Args: cobra.ExactArgs(1),
		Long: "Makes what a laboratory or a small service provider needs: wardgate-sp.toml, the server's certificate\n" +
			"(web-root.pem is its anchor), the policy signer's (policy-root.pem), and a CA for each --service.\n" +
			"Device certificates are the device CA's affair: --device-anchors are its roots.",
	}
	f := cmd.Flags()
	tokenFlags(cmd, &o)
	f.StringVar(&o.Issuer, "issuer", "sp.example", "the centre's name, in policies and certificates")
	f.StringVar(&o.Organization, "organization", "", "in the subjects of CAs")
	f.StringArrayVar(&o.Hosts, "host", nil, "name or address of the server; may be repeated; default: --issuer")
	f.StringVar(&anchors, "device-anchors", "", "PEM `file` with the roots of device certificates")
	f.StringVar(&cas, "device-cas", "", "PEM `file` with the issuing CAs below them")
	f.StringArrayVar(&services, "service", nil, "`NAME=DOMAIN` of a service to make a CA for; may be repeated")
	f.StringVar(&o.Listen, "listen", ":8443", "where devices connect")
	f.StringVar(&o.Status, "status", "", "where revocation lists and OCSP are served")
	f.StringVar(&o.StatusURL, "status-url", "", "how others reach that, for the certificates")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if anchors == "" {
			return fmt.Errorf("%w: expected --device-anchors FILE, came nothing", errUsage)
		}
		var err error
		if o.DeviceAnchors, err = os.ReadFile(anchors); err != nil {
			return err
		}
		if cas != "" {
			if o.DeviceCAs, err = os.ReadFile(cas); err != nil {
				return err
			}
		}
		o.Services = map[string]string{}
		for _, s := range services {
			name, domain, ok := strings.Cut(s, "=")
			if !ok {
				return fmt.Errorf("%w: --service: expected NAME=DOMAIN, came %q", errUsage, s)
			}
			o.Services[name] = domain
		}
		if err := sp.Init(args[0], o, time.Now(), rand.Reader); err != nil {
			return err
		}
		return c.print(cmd, map[string]any{"dir": args[0], "services": len(o.Services)},
			fmt.Sprintf("%s is made; next: wardgate-sp --config %s/wardgate-sp.toml apply REGISTRY\n", args[0], args[0]))
	}
	return cmd
}

// inputOf is a folder of registry files.
func inputOf(dir string) (operator.Input, error) {
	if st, err := os.Stat(dir); err != nil {
		return operator.Input{}, err
	} else if !st.IsDir() {
		return operator.Input{}, fmt.Errorf("%w: expected a folder with a registry's files, came %q", errUsage, dir)
	}
	return operator.Input{Files: os.DirFS(dir)}, nil
}

func (c *cli) planCommand() *cobra.Command {
	return &cobra.Command{
		Use: "plan DIR", Short: "Show what a folder of registry files would change, member by member", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, api operator.API) error {
				in, err := inputOf(args[0])
				if err != nil {
					return err
				}
				p, err := api.Plan(ctx, in)
				if err != nil {
					return err
				}
				return c.print(cmd, p, planText(p))
			})
		},
	}
}

func planText(p *operator.Plan) string {
	if p.Text == "" {
		return fmt.Sprintf("nothing changes: the registry is at revision %d\n", p.From)
	}
	return p.Text + fmt.Sprintf("%d devices may get a new policy\n", len(p.Affected))
}

func (c *cli) applyCommand() *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use: "apply DIR", Short: "Make a folder of registry files the registry, in one transaction", Args: cobra.ExactArgs(1),
		Long: "Makes the plan and carries it out. With --revision it is refused where the registry is not at that\n" +
			"revision any more, which plan tells: so that what was looked at is what is done.",
	}
	cmd.Flags().StringVar(&why, "why", "", "for the history")
	revision := cmd.Flags().Uint64("revision", 0, "the `revision` that was planned from")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var from *uint64
		if cmd.Flags().Changed("revision") {
			from = revision
		}
		return c.with(cmd, func(ctx context.Context, api operator.API) error {
			in, err := inputOf(args[0])
			if err != nil {
				return err
			}
			p, err := api.Apply(ctx, in, from, operator.By{Who: who(), Why: why})
			if err != nil {
				return err
			}
			text := planText(p)
			if p.Text != "" {
				text += fmt.Sprintf("applied as revision %d\n", p.Applied)
			}
			return c.print(cmd, p, text)
		})
	}
	return cmd
}

func (c *cli) exportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "export DIR", Short: "Write the registry into a folder of files", Args: cobra.ExactArgs(1),
		Long: "Writes members/, devices/, services/ and contracts/ in DIR. Files of objects that the registry does not\n" +
			"have are removed from them; everything else in DIR stays.",
	}
	revision := cmd.Flags().Uint64("revision", 0, "as it was at this `revision`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var at *uint64
		if cmd.Flags().Changed("revision") {
			at = revision
		}
		return c.with(cmd, func(ctx context.Context, api operator.API) error {
			f, err := api.Files(ctx, at)
			if err != nil {
				return err
			}
			wrote, removed, err := sp.ExportFiles(args[0], func(yield func(string, []byte) bool) {
				for name, text := range f.Files {
					if !yield(name, []byte(text)) {
						return
					}
				}
			})
			if err != nil {
				return err
			}
			return c.print(cmd, map[string]any{"revision": f.Revision, "written": wrote, "removed": removed}, fmt.Sprintf("%s: %d files written, %d removed\n", args[0], wrote, removed))
		})
	}
	return cmd
}
