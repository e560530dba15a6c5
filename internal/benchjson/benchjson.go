// Package benchjson turns benchmark results into the JSON lines and the table that `make bench`,
// `make bench-net` and `make bench-ike` write, so that runs can be compared by programs.
package benchjson

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Result is one measurement, one line of a .jsonl file.
type Result struct {
	Subject string  `json:"subject"` // what was measured: a package, or a tunnel
	Test    string  `json:"test"`
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"`
	Round   int     `json:"round"` // from 1
	// Note says why there is no value, where there is none.
	Note string `json:"note,omitempty"`
}

// Write writes results as JSON lines.
func Write(w io.Writer, results []Result) error {
	enc := json.NewEncoder(w)
	for _, r := range results {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// Parse reads the output of `go test -bench` of one or several packages. The subject is the
// package's last element but for the module; a benchmark that appears again (-count) counts as
// the next round. Lines that are no results are passed to other, such as PASS and log lines.
func Parse(r io.Reader, other func(line string)) ([]Result, error) {
	var out []Result
	subject := ""
	rounds := map[string]int{}
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := s.Text()
		if pkg, ok := strings.CutPrefix(line, "pkg: "); ok {
			subject = pkg
			if _, below, ok := strings.Cut(pkg, "/"); ok {
				subject = below
			}
			continue
		}
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") || len(f)%2 != 0 {
			other(line)
			continue
		}
		if _, err := strconv.ParseUint(f[1], 10, 64); err != nil {
			other(line)
			continue
		}
		test := strings.TrimPrefix(f[0], "Benchmark")
		if i := strings.LastIndexByte(test, '-'); i > 0 {
			if _, err := strconv.Atoi(test[i+1:]); err == nil { // GOMAXPROCS
				test = test[:i]
			}
		}
		rounds[subject+" "+test]++
		for i := 2; i+1 < len(f); i += 2 {
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				return nil, fmt.Errorf("benchmark line %q: %q is not a number", line, f[i])
			}
			out = append(out, Result{Subject: subject, Test: test, Value: v, Unit: f[i+1], Round: rounds[subject+" "+test]})
		}
	}
	return out, s.Err()
}

// Ratios adds, for each test of a subject named "Base/…" and each round, how many percent of the
// reference's value it reaches. pairs maps a test's first element to its reference's: with
// {"Seal": "RawSeal"}, Seal/aes128gcm/1420 is set against RawSeal/aes128gcm/1420.
func Ratios(results []Result, pairs map[string]string, unit string) []Result {
	find := map[reportKey]float64{}
	for _, r := range results {
		if r.Unit == unit {
			find[reportKey{r.Subject, r.Test, unit, r.Round}] = r.Value
		}
	}
	var out []Result
	for _, r := range results {
		if r.Unit != unit {
			continue
		}
		first, rest, _ := strings.Cut(r.Test, "/")
		ref, ok := pairs[first]
		if !ok {
			continue
		}
		if base, ok := find[reportKey{r.Subject, path.Join(ref, rest), unit, r.Round}]; ok && base != 0 {
			out = append(out, Result{Subject: r.Subject, Test: r.Test, Value: math.Round(r.Value/base*1000) / 10, Unit: "%-of-" + ref, Round: r.Round})
		}
	}
	return out
}

// Table prints the median and the range over the rounds, one line for each subject and test, one
// column for each unit.
func Table(w io.Writer, results []Result) error {
	type key struct{ subject, test string }
	var (
		rows  []key
		units []string
		cells = map[key]map[string][]float64{}
	)
	for _, r := range results {
		k := key{r.Subject, r.Test}
		if cells[k] == nil {
			cells[k] = map[string][]float64{}
			rows = append(rows, k)
		}
		if !slices.Contains(units, r.Unit) {
			units = append(units, r.Unit)
		}
		cells[k][r.Unit] = append(cells[k][r.Unit], r.Value)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(append([]string{"subject", "test"}, units...), "\t"))
	for _, k := range rows {
		line := []string{k.subject, k.test}
		for _, u := range units {
			line = append(line, cell(cells[k][u]))
		}
		fmt.Fprintln(tw, strings.Join(line, "\t"))
	}
	return tw.Flush()
}

func cell(v []float64) string {
	if len(v) == 0 {
		return "-"
	}
	m := median(v)
	if v[0] == v[len(v)-1] {
		return number(m)
	}
	return fmt.Sprintf("%s [%s-%s]", number(m), number(v[0]), number(v[len(v)-1]))
}

func number(v float64) string {
	if math.Abs(v) >= 100 || v == math.Trunc(v) {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}
