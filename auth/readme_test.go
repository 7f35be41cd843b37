package auth

import (
	"flag"
	"fmt"
	"strings"
	"testing"

	"blobmount/integration/readme"
)

var update = flag.Bool("update", false, "write the table of names into README.md")

// groupTexts are where the names of a group come from.
var groupTexts = [groupCount]string{
	secretFiles:   "`--secret-dir DIR`, then `$CREDENTIALS_DIRECTORY` (systemd): files, with the names of ZenML and of the Kubernetes driver blob.csi.azure.com",
	adlfsNames:    "adlfs, ZenML",
	blobfuseNames: "blobfuse2",
	cliNames:      "Azure CLI",
	otherNames:    "object_store, Go CDK, restic",
	azcopyNames:   "azcopy",
	azureMLNames:  "examples of Azure ML's documentation",
	anonymity:     "anonymous access, for adlfs and object_store",
	processNames:  "the Azure SDKs",
}

// "A table in README lists every accepted name with its precedence, generated from the same table that the code uses."
// After a change: go test ./auth -run Readme -update
func TestReadmeHasTheNames(t *testing.T) {
	const file = "../README.md"
	const begin, end = "<!-- names: generated from auth/table.go -->\n", "<!-- end of names -->\n"
	readme.Keep(t, file, begin, end, nameTable(), "go test ./auth -run Readme -update", *update)
}

// nameTable returns all names as a Markdown table, in the order in which they are asked.
func nameTable() string {
	var b strings.Builder
	b.WriteString("\n| | Place | Credentials, preferred first | What belongs to them |\n|---|---|---|---|\n")
	line := 0
	add := func(cells ...string) {
		line++
		fmt.Fprintf(&b, "| %d | %s |\n", line, strings.Join(cells, " | "))
	}
	add("flags and `-o`, the source", "`--client-certificate`, `--federated-token-file`, `--object-id`, `--resource-id`",
		"`--account-name`, `--endpoint`, `--cloud`, `--tenant-id`, `--client-id`, `--authority-host`, `--auth`")
	for g := secretFiles; g < groupCount; g++ {
		text := groupTexts[g]
		if g != secretFiles {
			text = "environment: " + text
		}
		add(text, names(g, true), names(g, false))
	}
	add("default chain of the Azure SDK", "its environment names (also `AZURE_USERNAME`, `AZURE_PASSWORD`), workload identity, managed identity, Azure CLI, Azure Developer CLI, PowerShell",
		"`AZURE_TOKEN_CREDENTIALS` chooses among them")
	return b.String() + "\n"
}

// names lists the names of a group by what they mean.
func names(g group, credentials bool) string {
	var parts []string
	for k := range kindCount {
		if k.credential() != credentials {
			continue
		}
		var all []string
		for _, r := range table {
			if r.group == g && r.kind == k {
				all = append(all, "`"+r.name+"`")
			}
		}
		if all == nil {
			continue
		}
		what := k.String()
		if k == unsupported {
			what = "refused"
		}
		parts = append(parts, what+" "+strings.Join(all, ", "))
	}
	return strings.Join(parts, "; ")
}
