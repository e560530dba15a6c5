package enroltest

var chipDir string
