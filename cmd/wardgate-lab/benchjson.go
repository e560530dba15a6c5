package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"wardgate/internal/benchjson"
)

func benchJSONCommand() *cobra.Command {
	var (
		out    string
		ratios []string
	)
	cmd := &cobra.Command{
		Use:   "benchjson --out FILE",
		Short: "Turn the output of `go test -bench` on standard input into a table and JSON lines",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			failed := false
			results, err := benchjson.Parse(os.Stdin, func(line string) {
				if strings.HasPrefix(line, "FAIL") || strings.HasPrefix(line, "--- FAIL") {
					failed = true
				}
				fmt.Fprintln(os.Stderr, line)
			})
			if err != nil {
				return err
			}
			pairs := map[string]string{}
			for _, r := range ratios {
				test, ref, ok := strings.Cut(r, "=")
				if !ok {
					return fmt.Errorf("%w: --ratio %q: want TEST=REFERENCE", errUsage, r)
				}
				pairs[test] = ref
			}
			results = append(results, benchjson.Ratios(results, pairs, "MB/s")...)
			if err := writeResults(out, results); err != nil {
				return err
			}
			if failed {
				return fmt.Errorf("a benchmark failed (its output is above); %d results are in %s", len(results), out)
			}
			if len(results) == 0 {
				return fmt.Errorf("no benchmark result on standard input")
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file for the JSON lines; replaced")
	cmd.Flags().StringArrayVar(&ratios, "ratio", nil, "TEST=REFERENCE: add what TEST reaches of REFERENCE, in percent of its MB/s")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// writeResults writes the JSON lines to a file and the table to standard output.
func writeResults(name string, results []benchjson.Result) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := benchjson.Write(f, results); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return benchjson.Table(os.Stdout, results)
}
