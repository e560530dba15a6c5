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
	"wardgate/sp/registry"
	"wardgate/sp/store"
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

// planned is a plan as JSON.
type planned struct {
	From     store.Revision    `json:"from"`
	Changes  []registry.Change `json:"changes"`
	Affected []string          `json:"affected"`
	Applied  store.Revision    `json:"applied,omitempty"`
}

func (c *cli) plan(ctx context.Context, centre *sp.Centre, dir string) (*sp.Plan, error) {
	if st, err := os.Stat(dir); err != nil {
		return nil, err
	} else if !st.IsDir() {
		return nil, fmt.Errorf("%w: expected a folder with a registry's files, came %q", errUsage, dir)
	}
	return centre.Plan(ctx, os.DirFS(dir))
}

func (c *cli) planCommand() *cobra.Command {
	return &cobra.Command{
		Use: "plan DIR", Short: "Show what a folder of registry files would change, member by member", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, centre *sp.Centre) error {
				p, err := c.plan(ctx, centre, args[0])
				if err != nil {
					return err
				}
				return c.print(cmd, planned{p.From, orNone(p.Changes), orNone(p.Affected), 0}, planText(p))
			})
		},
	}
}

func planText(p *sp.Plan) string {
	if p.Text == "" {
		return fmt.Sprintf("nothing changes: the registry is at revision %d\n", p.From)
	}
	return p.Text + fmt.Sprintf("%d devices may get a new policy\n", len(p.Affected))
}

func orNone[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (c *cli) applyCommand() *cobra.Command {
	var why string
	cmd := &cobra.Command{Use: "apply DIR", Short: "Make a folder of registry files the registry, in one transaction", Args: cobra.ExactArgs(1)}
	cmd.Flags().StringVar(&why, "why", "", "for the history")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.with(cmd, func(ctx context.Context, centre *sp.Centre) error {
			p, err := c.plan(ctx, centre, args[0])
			if err != nil {
				return err
			}
			done, err := centre.Apply(ctx, p, who(), why)
			if err != nil {
				return err
			}
			text := planText(p)
			if p.Text != "" {
				text += fmt.Sprintf("applied as revision %d\n", done.Revision)
			}
			return c.print(cmd, planned{p.From, orNone(p.Changes), orNone(p.Affected), done.Revision}, text)
		})
	}
	return cmd
}

func (c *cli) exportCommand() *cobra.Command {
	return &cobra.Command{
		Use: "export DIR", Short: "Write the registry into a folder of files", Args: cobra.ExactArgs(1),
		Long: "Writes members/, devices/, services/ and contracts/ in DIR. Files of objects that the registry does not\n" +
			"have are removed from them; everything else in DIR stays.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRegistry(cmd, func(_ context.Context, _ *sp.Centre, r *registry.Registry) error {
				wrote, removed, err := sp.Export(args[0], r)
				if err != nil {
					return err
				}
				return c.print(cmd, map[string]int{"written": wrote, "removed": removed}, fmt.Sprintf("%s: %d files written, %d removed\n", args[0], wrote, removed))
			})
		},
	}
}

func (c *cli) withRegistry(cmd *cobra.Command, do func(context.Context, *sp.Centre, *registry.Registry) error) error {
	return c.with(cmd, func(ctx context.Context, centre *sp.Centre) error {
		r, _, err := centre.Store().Current(ctx)
		if err != nil {
			return err
		}
		return do(ctx, centre, r)
	})
}
