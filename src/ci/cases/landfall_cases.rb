# Keeps the examples of one part of a file, and says how many there were and how many were kept.
#
# Loaded by Landfall where one file is spread over several nodes. The first line of the file named by LANDFALL_CASES is
# `only` or `except`, the others are full descriptions of examples.
landfall_told = ENV.fetch("LANDFALL_CASES")
landfall_lines = File.read(landfall_told, encoding: "UTF-8").split("\n", -1)
landfall_only = landfall_lines.shift == "only"
landfall_named = landfall_lines.to_h { |line| [line, true] }

RSpec.configure do |config|
  # An exclusion holds beside whatever the project itself includes or excludes.
  config.filter_run_excluding(
    full_description: ->(description, _metadata) { landfall_named.key?(description.to_s) != landfall_only }
  )
end

landfall_process = Process.pid
at_exit do
  if Process.pid == landfall_process
    File.write("#{landfall_told}.said", "#{RSpec.world.all_examples.size} #{RSpec.world.example_count}")
  end
end
