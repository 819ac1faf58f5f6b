{{/* The names are fixed: an upgrade is told from a removal by that of the DaemonSet, and the plugin by that of the account. */}}
{{- define "node.name" -}}istio-cni-node{{- end }}
{{- define "node.account" -}}istio-cni{{- end }}
{{- define "node.pluginAccount" -}}istio-cni-plugin{{- end }}

{{/* A value, else the one of the same name below `global`. Call with (list $ "name"). */}}
{{- define "node.value" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}
{{- get $root.Values $name | default (get $root.Values.global $name) | default "" -}}
{{- end }}

{{- define "node.platform" -}}
{{- $named := include "node.value" (list . "platform") -}}
{{- if $named -}}{{ $named }}{{- else if contains "-gke" .Capabilities.KubeVersion.GitVersion -}}gke{{- end -}}
{{- end }}

{{/* What differs by platform, as YAML. */}}
{{- define "node.paths" -}}
{{- $platform := include "node.platform" . -}}
{{- $paths := dict "bin" "/opt/cni/bin" "conf" "/etc/cni/net.d" "netns" "/var/run/netns" "file" "" "chained" true "provider" "default" -}}
{{- if eq $platform "gke" -}}
{{- $_ := set $paths "bin" "/home/kubernetes/bin" -}}
{{- else if eq $platform "k3s" -}}
{{- $_ := set $paths "bin" "/var/lib/rancher/k3s/data/cni" -}}
{{- $_ := set $paths "conf" "/var/lib/rancher/k3s/agent/etc/cni/net.d" -}}
{{- else if eq $platform "k3d" -}}
{{- $_ := set $paths "bin" "/bin" -}}
{{- $_ := set $paths "conf" "/var/lib/rancher/k3s/agent/etc/cni/net.d" -}}
{{- else if eq $platform "microk8s" -}}
{{- $_ := set $paths "bin" "/var/snap/microk8s/current/opt/cni/bin" -}}
{{- $_ := set $paths "conf" "/var/snap/microk8s/current/args/cni-network" -}}
{{- else if eq $platform "minikube" -}}
{{- $_ := set $paths "netns" "/var/run/docker/netns" -}}
{{- else if eq $platform "openshift" -}}
{{- $_ := set $paths "bin" "/var/lib/cni/bin" -}}
{{- $_ := set $paths "conf" "/etc/cni/multus/net.d" -}}
{{- $_ := set $paths "file" "istio-cni.conf" -}}
{{- $_ := set $paths "chained" false -}}
{{- $_ := set $paths "provider" "multus" -}}
{{- end -}}
{{- with .Values.cniBinDir }}{{- $_ := set $paths "bin" . }}{{- end -}}
{{- with .Values.cniConfDir }}{{- $_ := set $paths "conf" . }}{{- end -}}
{{- with .Values.cniNetnsDir }}{{- $_ := set $paths "netns" . }}{{- end -}}
{{- with .Values.cniConfFileName }}{{- $_ := set $paths "file" . }}{{- end -}}
{{- with .Values.provider }}{{- $_ := set $paths "provider" . }}{{- end -}}
{{- if not (kindIs "invalid" .Values.chained) }}{{- $_ := set $paths "chained" .Values.chained }}{{- end -}}
{{- if .Values.repair.enabled }}
{{- fail "repair.enabled: repair is for pods with sidecars, which Isthmus does not serve; set it to false" }}
{{- end -}}
{{- if and .Values.istioOwnedCNIConfig (not (and $paths.chained .Values.ambient.enabled)) }}
{{- fail "istioOwnedCNIConfig needs chained=true and ambient.enabled=true" }}
{{- end -}}
{{- $paths | toYaml -}}
{{- end }}

{{- define "node.image" -}}
{{- if contains "/" .Values.image -}}
{{ .Values.image }}
{{- else -}}
{{- with include "node.value" (list . "hub") }}{{ . }}/{{ end -}}
{{ .Values.image }}:{{ include "node.value" (list . "tag") | default .Chart.AppVersion }}
{{- with include "node.value" (list . "variant") }}-{{ . }}{{ end -}}
{{- end -}}
{{- end }}

{{/* What selects the pods. Equal to that of istio's chart, so that one can be upgraded to the other. */}}
{{- define "node.selector" -}}
k8s-app: istio-cni-node
{{- end }}

{{- define "node.labels" -}}
app.kubernetes.io/name: istio-cni
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: isthmus
app.kubernetes.io/version: {{ include "node.value" (list . "tag") | default .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- with .Values.revision }}
istio.io/rev: {{ . }}
{{- end }}
{{- end }}

{{- define "node.metadata" -}}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "node.labels" . | nindent 2 }}
{{- end }}
