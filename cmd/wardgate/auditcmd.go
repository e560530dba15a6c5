package main

import (
	"errors"
	"io/fs"

	"github.com/spf13/cobra"

	"wardgate/audit"
	"wardgate/router/control"
)

// defaultTail is how many records `audit tail` shows.
const defaultTail = 20

func (c *cli) auditCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Read and verify the record of what happened"}
	cmd.AddCommand(c.auditTailCommand(), c.auditVerifyCommand())
	return cmd
}

func (c *cli) auditTailCommand() *cobra.Command {
	var (
		n    int
		file string
	)
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Show the last records, oldest first",
		Long: "Show the last records of what happened, oldest first. With --file a file is read and no\n" +
			"daemon is asked. The chain is not verified: `wardgate audit verify` does that.",
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if n < 1 || n > audit.MaxTail {
				return badUsage("the default is 20", "-n: expected 1 to %d, came %d", audit.MaxTail, n)
			}
			if cmd.Flags().Changed("file") {
				recs, err := audit.Tail(file, n)
				if err != nil {
					return auditFailed(file, err)
				}
				return c.answerRecords(recs, recs)
			}
			d, ctx, cancel, err := c.daemon(cmd)
			if err != nil {
				return err
			}
			defer cancel()
			list, err := d.AuditTail(ctx, n)
			if err != nil {
				return err
			}
			recs := make([]audit.Record, len(list))
			for i := range list {
				recs[i] = record(&list[i])
			}
			if list == nil {
				list = []control.AuditRecord{}
			}
			return c.answerRecords(list, recs)
		},
	}
	cmd.Flags().IntVarP(&n, "number", "n", defaultTail, "how many `records`")
	cmd.Flags().StringVar(&file, "file", "", "read this `file` and ask no daemon")
	return cmd
}

// answerRecords prints v as JSON, or recs for people.
func (c *cli) answerRecords(v any, recs []audit.Record) error {
	return c.answer(v, func(p *printer) {
		if len(recs) == 0 {
			p.line("The record is empty.")
		}
		for _, r := range recs {
			// Human trusts these two; a file may hold anything.
			r.Event, r.Result = audit.Event(plain(string(r.Event))), audit.Result(plain(string(r.Result)))
			p.line("%s", r.Human())
		}
	})
}

// record is a record of the control API as package audit prints it.
func record(r *control.AuditRecord) audit.Record {
	return audit.Record{
		Seq: r.Seq, Time: r.Time, Event: audit.Event(r.Event), Who: r.Who, What: r.What, Where: r.Where,
		Result: audit.Result(r.Result), Detail: r.Detail,
	}
}

func auditFailed(file string, err error) error {
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		return fileFailed(file, err)
	}
	return failed(control.KindInternal, "audit-file", "the record cannot be read", "see what is wrong with it: wardgate audit verify "+file, err)
}

func (c *cli) auditVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify that a record is whole and unchanged",
		Long: "Verify the hash chain of a record, with all its rotated files: that no record was changed,\n" +
			"taken out, put in or exchanged. No daemon is asked. Records cut off at the very end show only\n" +
			"when the last hash is compared with one that was noted elsewhere. The exit status is 0 when\n" +
			"the chain is whole and 1 when it is not.",
		Args: exactly("the FILE of an audit record"),
		RunE: func(_ *cobra.Command, args []string) error {
			rep, err := audit.VerifyFile(args[0])
			if err != nil {
				return auditFailed(args[0], err)
			}
			if err := c.answer(rep, func(p *printer) { printVerified(p, &rep) }); err != nil {
				return err
			}
			if rep.Break != nil {
				return silent(exitFailure)
			}
			return nil
		},
	}
}

func printVerified(p *printer, r *audit.Report) {
	if b := r.Break; b != nil {
		p.line("%s: %s, line %d: %s.", p.style(red, "NOT WHOLE"), plain(b.File), b.Line, plain(b.Text))
		if b.Seq > 0 {
			p.line("  Up to record %d nothing was changed.", b.Seq)
		}
		p.line("  → keep the files as they are, and report this as a security incident")
		return
	}
	if r.Records == 0 {
		p.line("%s, and empty.", p.style(green, "Whole"))
		return
	}
	p.line("%s: %s, %d to %d, in %s.", p.style(green, "Whole"), plural(r.Records, "record"), r.First, r.Last, plural(len(r.Files), "file"))
	p.line("  Hash of the last one: %s", plain(r.LastHash))
	if r.MissingHead {
		p.line("  The records before %d are not there: their files were removed, or are kept elsewhere.", r.First)
	}
	if r.Unfinished {
		p.line("  The last line is half written: it is being written now, or a power loss cut it off.")
	}
}
