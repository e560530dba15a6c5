package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"wardgate/sp"
	"wardgate/sp/operator"
)

// with runs something with what operators can do: on the database that the configuration names, or over
// the API of a centre that runs.
func (c *cli) with(cmd *cobra.Command, do func(ctx context.Context, api operator.API) error) error {
	if c.api == "" {
		if c.apiCert+c.apiKey+c.apiAnchors != "" {
			return fmt.Errorf("%w: expected --api with --api-cert, --api-key and --api-anchors, came none", errUsage)
		}
		centre, err := c.open(cmd.Context(), sp.Options{})
		if err != nil {
			return err
		}
		err = do(cmd.Context(), centre.OperatorAPI())
		return errors.Join(err, centre.Close())
	}
	t, err := c.apiTLS()
	if err != nil {
		return err
	}
	client, err := operator.NewClient(c.api, t)
	if err != nil {
		return err
	}
	return do(cmd.Context(), client)
}

func (c *cli) apiTLS() (*tls.Config, error) {
	if !strings.Contains(c.api, "://") {
		if c.apiCert+c.apiKey+c.apiAnchors != "" {
			return nil, fmt.Errorf("%w: expected --api https://HOST:PORT with --api-cert, --api-key and --api-anchors, came %q", errUsage, c.api)
		}
		return nil, nil
	}
	if c.apiCert == "" || c.apiKey == "" || c.apiAnchors == "" {
		return nil, fmt.Errorf("%w: expected --api-cert, --api-key and --api-anchors with --api https://…, came fewer", errUsage)
	}
	pair, err := tls.LoadX509KeyPair(c.apiCert, c.apiKey)
	if err != nil {
		return nil, err
	}
	roots, err := os.ReadFile(c.apiAnchors)
	if err != nil {
		return nil, err
	}
	t := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: x509.NewCertPool()}
	if !t.RootCAs.AppendCertsFromPEM(roots) {
		return nil, fmt.Errorf("%s: expected certificates in PEM, came none", c.apiAnchors)
	}
	return t, nil
}

// table writes lines with columns by tab.
func table(heading string, rows []string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, heading)
	for _, r := range rows {
		fmt.Fprintln(w, r)
	}
	_ = w.Flush() // into memory
	return b.String()
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func (c *cli) historyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "history", Short: "List the registry's revisions, the newest first", Args: cobra.NoArgs}
	limit := cmd.Flags().Int("limit", operator.DefaultPage, "how many")
	before := cmd.Flags().Uint64("before", 0, "those before this `revision`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return c.with(cmd, func(ctx context.Context, api operator.API) error {
			h, err := api.History(ctx, *before, *limit)
			if err != nil {
				return err
			}
			var rows []string
			for _, r := range h.Items {
				rows = append(rows, fmt.Sprintf("%d\t%s\t%s\t+%d ~%d -%d\t%q", r.Revision, stamp(r.At), r.Who, r.Added, r.Changed, r.Removed, r.Why))
			}
			return c.print(cmd, h.Items, table("REVISION\tAT\tWHO\tOBJECTS\tWHY", rows))
		})
	}
	return cmd
}

func (c *cli) recordCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "record", Short: "The record of what the centre did and refused"}
	list := &cobra.Command{Use: "list", Short: "List entries, the oldest first", Args: cobra.NoArgs}
	limit := list.Flags().Int("limit", operator.DefaultPage, "how many")
	after := list.Flags().Uint64("after", 0, "those after this `number`")
	list.RunE = func(cmd *cobra.Command, _ []string) error {
		return c.with(cmd, func(ctx context.Context, api operator.API) error {
			r, err := api.Record(ctx, *after, *limit)
			if err != nil {
				return err
			}
			var rows []string
			for i := range r.Items {
				e := &r.Items[i]
				rows = append(rows, fmt.Sprintf("%d\t%s\t%s\t%s\t%q\t%q", e.Seq, stamp(e.At), e.Event, e.Result, e.Who, e.What))
			}
			return c.print(cmd, r, table("SEQ\tAT\tEVENT\tRESULT\tWHO\tWHAT", rows))
		})
	}
	verify := &cobra.Command{
		Use: "verify", Short: "Check that no entry was changed or removed", Args: cobra.NoArgs,
		Long: "Checks the chain of hashes from the first entry to the last, or from a mark that was noted before, and\n" +
			"prints the mark of the last one. Keep it elsewhere: who can write into the database can make a new chain,\n" +
			"but not one that holds an old mark.",
	}
	var from operator.Mark
	verify.Flags().Uint64Var(&from.Seq, "seq", 0, "`number` of a mark that was noted")
	verify.Flags().StringVar(&from.Hash, "hash", "", "its `hash`")
	verify.RunE = func(cmd *cobra.Command, _ []string) error {
		if (from.Seq == 0) != (from.Hash == "") {
			return fmt.Errorf("%w: expected --seq and --hash, or neither, came one", errUsage)
		}
		return c.with(cmd, func(ctx context.Context, api operator.API) error {
			m, err := api.VerifyRecord(ctx, from)
			if err != nil {
				return err
			}
			return c.print(cmd, m, fmt.Sprintf("the record is whole; its last mark: --seq %d --hash %s\n", m.Seq, m.Hash))
		})
	}
	cmd.AddCommand(list, verify)
	return cmd
}

func (c *cli) crlCommand() *cobra.Command {
	return &cobra.Command{
		Use: "crls", Short: "The services' revocation lists", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd, func(ctx context.Context, api operator.API) error {
				l, err := api.CRLs(ctx)
				if err != nil {
					return err
				}
				var rows []string
				for i := range l.Items {
					k := &l.Items[i]
					rows = append(rows, fmt.Sprintf("%s\t%s\t%s\t%d\t%s", k.Service, k.Issuer, k.Number, k.Entries, stamp(k.NextUpdate)))
				}
				return c.print(cmd, l.Items, table("SERVICE\tCA\tNUMBER\tREVOKED\tNEXT", rows))
			})
		},
	}
}

func (c *cli) healthCommand() *cobra.Command {
	return &cobra.Command{
		Use: "health", Short: "How the centre is", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd, func(ctx context.Context, api operator.API) error {
				h, err := api.Health(ctx)
				if err != nil {
					return err
				}
				return c.print(cmd, h, fmt.Sprintf("registry at revision %d; policies: %d to be made, %d being made, %d tried again; database %s\n",
					h.Revision, h.Waiting, h.Leased, h.Failing, h.Database))
			})
		},
	}
}
