<?php
// Answers questions about a composer.json: php composer.php FILE [SCRIPT]. Without a script it says whether packages
// are asked for, and ends with 2 and a sentence when the file can't be read; with one, ends with 1 when there is none.
$json = json_decode((string) file_get_contents($argv[1]), true);
if (!is_array($json)) {
    echo "composer.json can't be read: " . json_last_error_msg();
    exit(2);
}
if (isset($argv[2])) {
    exit(isset($json['scripts'][$argv[2]]) ? 0 : 1);
}
$asked = array_merge(array_keys((array) ($json['require'] ?? [])), array_keys((array) ($json['require-dev'] ?? [])));
echo array_filter($asked, fn ($name) => str_contains((string) $name, '/')) ? 'packages' : 'none';
