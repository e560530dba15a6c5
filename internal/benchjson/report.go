package benchjson

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// NotAvailable is the test under which it is noted that a subject could not be measured; Note says
// why.
const NotAvailable = "not available"

// Style is how a [Report] looks.
type Style int

// Text is for a terminal, Markdown for a document.
const (
	Text Style = iota
	Markdown
)

// Read reads JSON lines.
func Read(r io.Reader) ([]Result, error) {
	var out []Result
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for line := 1; s.Scan(); line++ {
		if strings.TrimSpace(s.Text()) == "" {
			continue
		}
		var x Result
		if err := json.Unmarshal(s.Bytes(), &x); err != nil {
			return nil, fmt.Errorf("line %d: want a measurement as a JSON object: %w", line, err)
		}
		out = append(out, x)
	}
	return out, s.Err()
}

// References are what a report sets ours against, in this order, where it was measured. With Test,
// the reference is that one test's value for every test of the same unit.
var References = []struct{ Name, Subject, Test string }{
	{"wireguard-go", "wireguard-go", ""},
	{"wireguard-go-gro", "wireguard-go-gro", ""},
	{"strongswan (kernel-libipsec)", "strongswan", ""},
	{"openvpn", "openvpn", ""},
	{"nebula", "nebula", ""},
	{"wardgate-limit (no cipher)", "wardgate-limit", ""},
	{"raw", "raw", ""},
	{"raw-nogso", "raw-nogso", ""},
	{"one core's AES-128-GCM (Go)", limit, "go-seal-128"},
	{"one core's AES-128-GCM (esp)", limit, "esp-seal-128"},
}

// ours is the prefix of the subjects that are set against the references.
const ours = "wardgate-"

// limit is the subject that is no tunnel: it has tables of its own.
const limit = "aead"

// units says what is a table of its own, in this order; other units follow.
var units = []struct{ unit, title string }{
	{"Mbit/s", "Throughput, Mbit/s received"},
	{"kpps", "Packets received, thousands a second"},
	{"%lost", "Packets lost, percent"},
	{"µs", "Round trip, µs"},
	{"daemon-s/GB", "Processor seconds of both daemons per gigabyte"},
	{"machine-s/GB", "Processor seconds of the whole machine per gigabyte"},
	{"MiB", "Resident memory of both daemons, MiB"},
}

// noRatio are units for which a ratio says nothing.
var noRatio = []string{"%lost", "retransmits"}

// group is what one table shows: the tests of a unit, of the tunnels or of the limit.
type group struct {
	unit  string
	limit bool
}

type reportKey struct {
	subject, test, unit string
	round               int
}

// collected are measurements, sorted into what a report needs.
type collected struct {
	subjects []string                // in order of appearance, as the tests of a group
	tests    map[group][]string      //
	values   map[reportKey][]float64 // several files may hold the same round
	rounds   int
	notes    map[string]string // why a subject was not available
}

func collect(results []Result) *collected {
	c := &collected{tests: map[group][]string{}, values: map[reportKey][]float64{}, notes: map[string]string{}}
	for _, r := range results {
		if r.Test == NotAvailable {
			c.notes[r.Subject] = r.Note
			continue
		}
		if !slices.Contains(c.subjects, r.Subject) {
			c.subjects = append(c.subjects, r.Subject)
		}
		g := group{r.Unit, r.Subject == limit}
		if !slices.Contains(c.tests[g], r.Test) {
			c.tests[g] = append(c.tests[g], r.Test)
		}
		c.rounds = max(c.rounds, r.Round)
		k := reportKey{r.Subject, r.Test, r.Unit, r.Round}
		c.values[k] = append(c.values[k], r.Value)
	}
	return c
}

// cell is the median and the range over the rounds.
func (c *collected) cell(subject, test, unit string) string {
	var v []float64
	for round := 1; round <= c.rounds; round++ {
		v = append(v, c.values[reportKey{subject, test, unit, round}]...)
	}
	return strings.Replace(cell(v), "-", "–", 1)
}

// ratio is the median of the rounds' ratios.
func (c *collected) ratio(subject, test, reference, refTest, unit string) string {
	var ratios []float64
	for round := 1; round <= c.rounds; round++ {
		a, b := c.values[reportKey{subject, test, unit, round}], c.values[reportKey{reference, refTest, unit, round}]
		if len(a) > 0 && len(b) > 0 && median(b) != 0 {
			ratios = append(ratios, median(a)/median(b))
		}
	}
	if len(ratios) == 0 || subject == reference {
		return none
	}
	return strconv.FormatFloat(median(ratios), 'f', 2, 64)
}

// none stands where there is no value.
const none = "–"

// measured is the table of a group.
func (c *collected) measured(g group, title string) *table {
	t := &table{title: title + ": median [lowest–highest]", head: append([]string{"subject"}, c.tests[g]...)}
	for _, s := range c.subjects {
		if (s == limit) != g.limit {
			continue
		}
		row := []string{s}
		for _, test := range c.tests[g] {
			row = append(row, c.cell(s, test, g.unit))
		}
		t.add(row)
	}
	return t
}

// ratios is the table of what one of ours reaches of the references.
func (c *collected) ratios(subject string, g group) *table {
	t := &table{title: subject + " ÷ …, " + g.unit, head: append([]string{"÷"}, c.tests[g]...)}
	for _, ref := range References {
		row := []string{ref.Name}
		for _, test := range c.tests[g] {
			row = append(row, c.ratio(subject, test, ref.Subject, cmp.Or(ref.Test, test), g.unit))
		}
		t.add(row)
	}
	return t
}

// Report writes one table for each unit, subjects by tests, with the median and the range over the
// rounds, and for each of ours the ratios to the references: the median of the rounds' ratios.
func Report(w io.Writer, results []Result, style Style) error {
	c := collect(results)
	all := slices.Clone(units)
	for _, r := range results {
		if r.Unit != "" && !slices.ContainsFunc(all, func(u struct{ unit, title string }) bool { return u.unit == r.Unit }) {
			all = append(all, struct{ unit, title string }{r.Unit, r.Unit})
		}
	}
	var tables []*table
	for _, u := range all {
		g := group{unit: u.unit}
		tables = append(tables, c.measured(g, u.title))
		for _, s := range c.subjects {
			if strings.HasPrefix(s, ours) && !slices.Contains(noRatio, u.unit) {
				tables = append(tables, c.ratios(s, g))
			}
		}
	}
	tables = append(tables, c.measured(group{"Mbit/s", true}, "Limit: one core, no network, Mbit/s"))
	for _, t := range tables {
		if err := t.write(w, style); err != nil {
			return err
		}
	}
	for _, s := range slices.Sorted(maps.Keys(c.notes)) {
		if _, err := fmt.Fprintf(w, "%s: not available: %s\n\n", s, c.notes[s]); err != nil {
			return err
		}
	}
	return nil
}

// median of some values; it sorts them.
func median(v []float64) float64 {
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// table is text in rows, the first cell of each being what the row is about.
type table struct {
	title string
	head  []string
	rows  [][]string
}

// add adds a row, unless there is nothing in it.
func (t *table) add(row []string) {
	if slices.ContainsFunc(row[1:], func(s string) bool { return s != none }) {
		t.rows = append(t.rows, row)
	}
}

func (t *table) write(w io.Writer, style Style) error {
	if len(t.rows) == 0 {
		return nil
	}
	if style == Text {
		fmt.Fprintln(w, t.title)
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, row := range append([][]string{t.head}, t.rows...) {
			fmt.Fprintln(tw, "  "+strings.Join(row, "\t"))
		}
		fmt.Fprintln(tw)
		return tw.Flush()
	}
	line := func(row []string) string {
		return "| " + strings.Join(row, " | ") + " |\n"
	}
	var b strings.Builder
	b.WriteString(t.title + "\n\n" + line(t.head) + "|---|" + strings.Repeat("---:|", len(t.head)-1) + "\n")
	for _, row := range t.rows {
		b.WriteString(line(row))
	}
	_, err := io.WriteString(w, b.String()+"\n")
	return err
}
