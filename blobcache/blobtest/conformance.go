package blobtest

import (
	"context"
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

// Check is one rule that every blob.Container keeps.
type Check struct {
	Name string // Method/Rule
	// Run tries the rule on an empty container and returns how it was broken. It may be called in parallel with
	// other checks on other containers.
	Run func(ctx context.Context, c blob.Container) error
}

// Checks returns all rules of the contract in package blob. The comment above each says where the rule is from:
// "contract" is blobcache/blob/container.go, a quoted title is a page of the Blob service's REST reference.
func Checks() []Check {
	var all []Check
	for _, group := range [][]Check{
		nameChecks(), writeChecks(), readChecks(), conditionChecks(), blockChecks(), copyChecks(), listChecks(), parallelChecks(),
	} {
		all = append(all, group...)
	}
	return all
}

// Deviation is a check that a service is known to fail, and why.
type Deviation struct {
	Check  string
	Reason string
}

// checkTimeout bounds one check: the longest writes 16 MiB and lists a few hundred names, a second against a slow
// emulator, so a minute means that it hangs.
const checkTimeout = time.Minute

// Conformance runs all checks as subtests, each on a new, empty container. A check named in known must fail, so
// that a deviation that was repaired does not stay in the list.
func Conformance(t *testing.T, newContainer func(t *testing.T) blob.Container, known ...Deviation) {
	t.Helper()
	deviations := map[string]string{}
	for _, d := range known {
		deviations[d.Check] = d.Reason
	}
	for _, check := range Checks() {
		reason, deviates := deviations[check.Name]
		delete(deviations, check.Name)
		t.Run(check.Name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), checkTimeout)
			defer cancel()
			err := check.Run(ctx, newContainer(t))
			switch {
			case deviates && err == nil:
				t.Errorf("passes, but is listed as a deviation (%s): remove it from the list", reason)
			case deviates:
				t.Skipf("known deviation: %s (%v)", reason, err)
			case err != nil:
				t.Error(err)
			}
		})
	}
	for name := range deviations {
		t.Errorf("deviation %q names no check", name)
	}
}
